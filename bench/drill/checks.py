"""What must hold of a run that was battered, held against an unbroken run of the same spec."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.drill.facts import Facts, damage_of, weights_of
from bench.drill.traces import RunTrace
from bench.drill.watching import Follower, Seen
from kargah.client import Client
from kargah.spec.journal import read_journal
from kargah.spec.layout import RunDir, checkpoint_name, checkpoint_step

RUNNING_WITH_NOTHING_ALIVE_SECONDS = 15.0
WHOLE_JOURNAL_BYTES = 1 << 30
COUNTED = ("metric", "evaluation", "checkpoint")
"""Records of a journal that become one event each."""


@dataclass(slots=True)
class Verdict:
    """What was found of one run. `num_lost` and `num_doubled` count logged facts, against the journals."""

    run_id: str
    recipe: str
    status: str = "?"
    num_kills: int = 0
    num_attempts: int = 0
    num_steps: int = 0
    num_trained_again: int = 0
    num_lost: int = 0
    num_doubled: int = 0
    num_checkpoints: int = 0
    num_events: int = 0
    longest_dead_seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def hold(self, condition: bool, otherwise: str) -> None:
        """Note a violation unless `condition`."""
        if not condition:
            self.violations.append(otherwise)


def check_run(
    verdict: Verdict, run_dir: RunDir, reference: RunDir, facts: Facts, client: Client, follower: Follower
) -> None:
    """Hold one ended run against its unbroken twin, and fill in `verdict`."""
    verdict.status = facts.statuses().get(verdict.run_id, "gone")
    verdict.hold(verdict.status == "completed", f"it ended as {verdict.status}")
    total = _check_steps(verdict, facts, reference.root.name)
    trace = RunTrace(run_dir).refresh()
    _check_attempts(verdict, trace)
    events = facts.events(verdict.run_id)
    _check_taken_in(verdict, trace, events)
    _check_checkpoints(verdict, run_dir, client, total)
    ours, theirs = weights_of(run_dir, total), weights_of(reference, total)
    verdict.hold(bool(theirs) and ours == theirs, "its end weights are not those of the unbroken run")
    _check_stream(verdict, follower, events, facts.metrics(verdict.run_id))
    dead = verdict.longest_dead_seconds
    verdict.hold(
        dead <= RUNNING_WITH_NOTHING_ALIVE_SECONDS, f"it was shown running with nothing alive for {dead:.1f} s"
    )


def _check_steps(verdict: Verdict, facts: Facts, reference: str) -> int:
    """Every step once, with every value of the unbroken run. Returns the unbroken run's last step."""
    wanted, found = facts.metrics(reference), facts.metrics(verdict.run_id)
    total = max(wanted)
    verdict.num_steps = sum(row[0] is not None for row in found.values())
    missing = sorted(set(wanted) - set(found))
    verdict.hold(not missing, f"{len(missing)} steps are missing, the first is {missing[:1]}")
    verdict.hold(list(wanted) == list(range(1, total + 1)), "the unbroken run itself lacks steps")
    verdict.hold(not set(found) - set(wanted), f"steps beyond the end: {sorted(set(found) - set(wanted))[:3]}")
    other = [step for step, row in found.items() if step in wanted and row != wanted[step]]
    if other:
        step = other[0]
        verdict.violations.append(
            f"{len(other)} steps have other values, the first is {step}: {found[step]}, unbroken {wanted[step]}"
        )
    return total


def _check_attempts(verdict: Verdict, trace: RunTrace) -> None:
    """No attempt began before a checkpoint that stood, and within an attempt no step is missing."""
    verdict.num_attempts = len(trace.attempts)
    kept, reached = 0, 0
    for attempt in trace.attempts:
        if attempt.start_step is None:
            continue
        verdict.hold(
            attempt.start_step >= kept,
            f"attempt {attempt.number} began at {attempt.start_step}, though a checkpoint of {kept} stood",
        )
        verdict.num_trained_again += max(0, reached - attempt.start_step)
        verdict.hold(
            attempt.steps == list(range(attempt.start_step + 1, attempt.start_step + 1 + len(attempt.steps))),
            f"the journal of attempt {attempt.number} lacks steps",
        )
        kept = max([kept, *attempt.checkpoints])
        reached = max([reached, *attempt.steps])


def _check_taken_in(verdict: Verdict, trace: RunTrace, events: list[tuple[int, str, dict[str, Any]]]) -> None:
    """The event log tells what the journals tell: in their order, each once."""
    written: list[tuple[str, int]] = []
    for attempt in trace.attempts:
        journal = trace.run_dir.attempt(attempt.number).journal
        records = read_journal(journal, limit_bytes=WHOLE_JOURNAL_BYTES).records
        written += [(record["type"], record["step"]) for record in records if record["type"] in COUNTED]
    told = [(type, data["step"]) for _, type, data in events if type in COUNTED]
    doubled, lost = Counter(told) - Counter(written), Counter(written) - Counter(told)
    verdict.num_doubled, verdict.num_lost = doubled.total(), lost.total()
    verdict.hold(not doubled, f"{verdict.num_doubled} logged facts were taken in twice: {list(doubled)[:1]}")
    verdict.hold(not lost, f"{verdict.num_lost} logged facts were lost: {list(lost)[:1]}")
    verdict.hold(bool(doubled or lost) or told == written, "logged facts were taken in in another order")


def _check_checkpoints(verdict: Verdict, run_dir: RunDir, client: Client, total: int) -> None:
    listed = {checkpoint_name(asset.step or 0) for asset in client.checkpoints.list(run_id=verdict.run_id)}
    verdict.num_checkpoints = len(listed)
    for name in sorted(listed):
        damage = damage_of(run_dir.checkpoints / name)
        verdict.hold(damage is None, f"the checkpoint {name} is listed, but {damage}")
    standing = {path.name for path in run_dir.checkpoints.iterdir()}
    whole = {name for name in standing if checkpoint_step(name) is not None}
    verdict.hold(checkpoint_name(total) in listed, "its last checkpoint is not listed")
    verdict.hold(not whole - listed, f"checkpoints stand on the disk and are not listed: {sorted(whole - listed)}")
    verdict.hold(standing == whole, f"left beside the checkpoints: {sorted(standing - whole)}")


def _check_stream(
    verdict: Verdict, follower: Follower, events: list[tuple[int, str, dict[str, Any]]], metrics: dict[int, Any]
) -> None:
    seen = follower.events
    verdict.num_events = len(seen)
    verdict.hold(follower.error is None, f"its stream broke: {follower.error}")
    verdict.hold(follower.ended, "its stream did not end")
    if not seen:
        verdict.violations.append("its stream told nothing")
        return
    ids = [event.id for event in seen]
    verdict.hold(all(one < next for one, next in pairwise(ids)), "ids of its stream do not grow")
    verdict.hold(
        [event.type for event in seen].count("snapshot") == 1 and not any(event.type == "reset" for event in seen),
        "its stream lost its place",
    )
    behind = [(id, type) for id, type, _ in events if id > ids[0]]
    verdict.hold(
        [(event.id, event.type) for event in seen[1:]] == behind,
        f"its stream told {len(seen) - 1} events of {len(behind)}, or others",
    )
    last = seen[-1]
    verdict.hold(last.type == "state" and last.final, f"its stream ended with {last.type}")
    losses = _losses(seen)
    wrong = [step for step, row in metrics.items() if row[0] is not None and losses.get(step) != row[0]]
    verdict.hold(not wrong, f"its stream told no or other losses of {len(wrong)} steps, the first is {wrong[:1]}")


def _losses(seen: list[Seen]) -> dict[int, float | None]:
    """The last loss told of every step."""
    return {event.step: event.loss for event in seen if event.type == "metric" and event.step is not None}
