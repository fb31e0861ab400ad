"""What the drill does to the server and to the training programs, and at which moments: dealt from one seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from bench.drill.recipes import CHECKPOINT_EVERY_STEPS
from bench.drill.traces import AttemptTrace, RunTrace

LONGEST_ROW_WITHOUT_CHECKPOINT = 3
"""A run whose programs die more often in a row before their first checkpoint is rightly given up."""
EARLY_SHARE = 0.2
"""Of the kills of a program, those that come in its first seconds, wherever it is then: loading, most of all."""
UNREADY_SHARE = 0.25
"""Of the kills of the server, those that do not wait until it is ready again."""


class Target(StrEnum):
    """Who is killed."""

    SERVER = "server"
    PROGRAM = "program"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Blow:
    """One kill: seconds since the drill began, and of a program's run: its id, attempt, steps it had trained."""

    target: Target
    at_seconds: float
    run_id: str | None = None
    attempt: int | None = None
    trained: int | None = None
    server_was_ready: bool = True


def targets(chance: random.Random) -> Iterator[Target]:
    """Who is next: each as often as the others, in an order left to chance."""
    while True:
        bag = list(Target)
        chance.shuffle(bag)
        yield from bag


@dataclass(frozen=True, slots=True)
class Moment:
    """When a program is killed: after so many seconds, or once an attempt has trained so many steps."""

    seconds: float | None
    steps: int

    def has_come(self, waited_seconds: float, trace: RunTrace) -> bool:
        """Whether it is now, for this run. An attempt that must not die yet is waited for until its checkpoint."""
        newest = trace.newest
        if newest is None or not _may_die(trace, newest):
            return False
        if self.seconds is not None:
            return waited_seconds >= self.seconds
        return newest.trained >= self.steps


def moment(chance: random.Random) -> Moment:
    """The next moment: mostly within the way to the second checkpoint, also right behind a start."""
    if chance.random() < EARLY_SHARE:
        return Moment(chance.uniform(0.0, 5.0), 0)
    return Moment(None, chance.randint(1, 5 * CHECKPOINT_EVERY_STEPS // 2))


def pause_before_restart(chance: random.Random) -> float:
    """Seconds that nobody starts the server again: often none."""
    dice = chance.random()
    if dice < 0.4:
        return 0.0
    return chance.uniform(0.0, 2.0) if dice < 0.9 else chance.uniform(2.0, 6.0)


def _may_die(trace: RunTrace, newest: AttemptTrace) -> bool:
    return newest.advanced or trace.num_without_checkpoint < LONGEST_ROW_WITHOUT_CHECKPOINT
