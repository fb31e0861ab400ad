"""The drill itself: unbroken runs first, then runs that are battered until the kills are done, then the checks."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.drill.blows import UNREADY_SHARE, Blow, Target, moment, pause_before_restart, targets
from bench.drill.checks import Verdict, check_run
from bench.drill.facts import Facts, processes_of, zombies_of
from bench.drill.recipes import DATASET, MODEL, RECIPES, Recipe
from bench.drill.traces import RunTrace, kill_program, program_pid
from bench.drill.watching import Follower, Watcher
from bench.server import Server, ServerBroken
from kargah.client import Conflict, StreamFailed
from kargah.client.training_config import TrainingConfig
from kargah.spec.layout import RunDir

ENDED = frozenset({"completed", "failed", "stopped"})
INTERLUDE_EVERY_KILLS = 4
LOOK_EVERY_SECONDS = 0.1
PAUSE_SECONDS = 120.0
PROGRAM_SECONDS = 180.0
"""How long no program can be killed before the drill says that none comes."""
STILL_SECONDS = 180.0
"""How long nothing may get on, at the end, before the drill stops waiting."""
SERVER_END_SECONDS = 10.0
STREAM_END_SECONDS = 60.0
LEAVE_SECONDS = 10.0


@dataclass(slots=True)
class Battered:
    """A run that is battered."""

    run_id: str
    recipe: Recipe
    trace: RunTrace
    follower: Follower
    num_kills: int = 0
    last_killed: int = 0
    """The attempt that was killed last: the kernel may take a moment to end it."""


@dataclass(slots=True)
class Found:
    """All that a drill did and found."""

    seed: int
    blows: list[Blow] = field(default_factory=list)
    interludes: list[str] = field(default_factory=list)
    server_ends_seconds: list[float] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    zombies: list[int] = field(default_factory=list)
    orphans: dict[int, str] = field(default_factory=dict)
    num_looks: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


def run_drill(home: Path, *, num_kills: int, seed: int, num_at_once: int, say: Callable[[str], None]) -> Found:
    """Do it all on a fresh data directory. Raises `ServerBroken` for a server that does not come up or does not end."""
    server = Server(home, local_runs=str(num_at_once))
    server.start()
    try:
        drill = _Drill(server, Found(seed), num_at_once, say)
        drill.train_unbroken(RECIPES if num_kills > INTERLUDE_EVERY_KILLS else RECIPES[:1])
        drill.batter(num_kills)
        drill.settle()
        drill.check()
        return drill.found
    finally:
        server.close()


class _Drill:
    def __init__(self, server: Server, found: Found, num_at_once: int, say: Callable[[str], None]) -> None:
        self.found = found
        self._server = server
        self._facts = Facts(server.home)
        self._num_at_once = num_at_once
        self._say = say
        self._chance = random.Random(found.seed)
        self._references: dict[str, str] = {}
        self._recipes: list[Recipe] = []
        self._runs: list[Battered] = []
        self._watcher: Watcher | None = None
        self._begun = time.monotonic()
        self._struck = time.monotonic()

    def train_unbroken(self, recipes: tuple[Recipe, ...]) -> None:
        """One run of each recipe to its end, undisturbed."""
        client = self._server.client
        for recipe in recipes:
            run_id = self._start(recipe, f"{recipe.name}, unbroken")
            with contextlib.suppress(StreamFailed):
                client.runs.wait(run_id)
            job = client.runs.status(run_id, max_points=2)
            if job.status != "completed":
                raise ServerBroken(f"the unbroken run {recipe.name} ended as {job.status}: {job.message}")
            self._references[recipe.name] = run_id
            self._say(f"unbroken: {recipe.name}, {job.step} steps, loss {job.train_loss:.4f}")
        self._recipes = list(recipes)
        self._watcher = Watcher(self._server.asker, self._server.home / "runs")

    def batter(self, num_kills: int) -> None:
        """Kill until there were so many, with runs under way all the time."""
        self._begun = self._struck = time.monotonic()
        due = targets(self._chance)
        rounds = [self._end_server, self._pause_a_run, self._signal_a_program]
        for number in range(1, num_kills + 1):
            target = next(due)
            blow = self._kill_server() if target is Target.SERVER else self._kill_a_program(target)
            self.found.blows.append(blow)
            self._struck = time.monotonic()
            who = f" run {blow.run_id[:8]}, attempt {blow.attempt}, {blow.trained} steps" if blow.run_id else ""
            self._say(f"kill {number} of {num_kills}: {blow.target} at {blow.at_seconds:.1f} s{who}")
            self._start_server_again()
            if number % INTERLUDE_EVERY_KILLS == 0:
                rounds[number // INTERLUDE_EVERY_KILLS % len(rounds)]()

    def settle(self) -> None:
        """Let every run come to its end."""
        self._server.wait_ready()
        last, since = None, time.monotonic()
        while not all(self._has_ended(run) for run in self._runs):
            now = [(run.trace.refresh().newest, run.trace.newest and run.trace.newest.trained) for run in self._runs]
            known = [(attempt and attempt.number, trained) for attempt, trained in now]
            if known != last:
                last, since = known, time.monotonic()
            if time.monotonic() - since > STILL_SECONDS:
                self.found.violations.append(f"nothing got on for {STILL_SECONDS:.0f} s at the end")
                break
            time.sleep(LOOK_EVERY_SECONDS)
        for run in self._runs:
            run.follower.join(STREAM_END_SECONDS)
        self.found.seconds = time.monotonic() - self._begun

    def check(self) -> None:
        """Hold every run against its unbroken twin, then look for what was left behind."""
        assert self._watcher is not None, "the watcher begins before the first kill"
        self._watcher.close()
        self.found.num_looks = self._watcher.num_looks
        for run in self._runs:
            verdict = Verdict(run.run_id, run.recipe.name, num_kills=run.num_kills)
            verdict.longest_dead_seconds = self._watcher.longest_seconds.get(run.run_id, 0.0)
            reference = self._run_dir(self._references[run.recipe.name])
            check_run(verdict, self._run_dir(run.run_id), reference, self._facts, self._server.client, run.follower)
            self.found.verdicts.append(verdict)
        if self._facts.num_living_attempts():
            self.found.violations.append(f"{self._facts.num_living_attempts()} attempts count as living")
        self._look_for_leftovers()

    def _start(self, recipe: Recipe, name: str) -> str:
        teacher = self._references[recipe.teacher] if recipe.teacher else None
        client = self._server.client
        return client.runs.start(
            MODEL,
            [DATASET],
            teacher_model=client.runs.status(teacher, max_points=2).best_checkpoint if teacher else None,
            name=name,
            config=TrainingConfig.model_validate(recipe.config),
        ).run_id

    def _keep_runs_going(self) -> None:
        """As many runs under way as there may be, where the server can be asked."""
        while len(self._living()) < self._num_at_once and self._server.is_ready():
            recipe = self._recipes[len(self._runs) % len(self._recipes)]
            run_id = self._start(recipe, f"{recipe.name}, battered {len(self._runs) + 1}")
            follower = Follower(self._server.client, run_id)
            self._runs.append(Battered(run_id, recipe, RunTrace(self._run_dir(run_id)), follower))

    def _kill_server(self) -> Blow:
        waits = self._chance.random() >= UNREADY_SHARE
        until = time.monotonic() + self._chance.uniform(0.0, 3.0 if waits else 1.5)
        if waits or not self._living():
            self._server.wait_ready()
            until = max(until, time.monotonic())
        while time.monotonic() < until:
            self._keep_runs_going()
            time.sleep(min(LOOK_EVERY_SECONDS, max(0.0, until - time.monotonic())))
        self._keep_runs_going()
        was_ready = self._server.is_ready()
        self._server.kill()
        for run in self._living():
            run.num_kills += 1
        return Blow(Target.SERVER, self._now(), server_was_ready=was_ready)

    def _kill_a_program(self, target: Target) -> Blow:
        """Kill a program at a moment of its own; with `BOTH`, the server too, either of them first."""
        when, begun = moment(self._chance), time.monotonic()
        server_first = self._chance.random() < 0.5
        while time.monotonic() - begun < PROGRAM_SECONDS:
            self._keep_runs_going()
            ready = [
                run for run in self._living() if when.has_come(time.monotonic() - self._struck, run.trace.refresh())
            ]
            self._chance.shuffle(ready)
            for run in ready:
                newest = run.trace.newest
                if newest is None or newest.number == run.last_killed or program_pid(run.trace.run_dir) is None:
                    continue
                was_ready = self._server.is_ready()
                if target is Target.BOTH and server_first:
                    self._server.kill()
                killed = kill_program(run.trace.run_dir)
                if target is Target.BOTH:
                    self._server.kill()
                elif killed is None:
                    continue
                run.num_kills += 1
                run.last_killed = newest.number
                return Blow(target, self._now(), run.run_id, newest.number, newest.trained, was_ready)
            time.sleep(LOOK_EVERY_SECONDS / 4)
        raise ServerBroken(f"no training program to kill came for {PROGRAM_SECONDS:.0f} s")

    def _start_server_again(self) -> None:
        if self._server.pid is None:
            time.sleep(pause_before_restart(self._chance))
            self._server.spawn()

    def _end_server(self) -> None:
        """The server is ended as an administrator does; runs go on."""
        self._server.wait_ready()
        self._keep_runs_going()
        seconds = self._server.terminate()
        self.found.server_ends_seconds.append(seconds)
        self.found.interludes.append("the server was ended by SIGTERM")
        if seconds > SERVER_END_SECONDS:
            self.found.violations.append(f"the server took {seconds:.1f} s to end")
        self._start_server_again()

    def _pause_a_run(self) -> None:
        """A run is paused by the API; the server may be killed before it has obeyed; then it is resumed."""
        run = self._some_run()
        try:
            self._server.client.runs.pause(run.run_id)
        except Conflict:
            return
        if self._chance.random() < 0.5:
            self._server.kill()
            self._start_server_again()
            self.found.interludes.append("a run was paused, and the server killed before it could see that")
        else:
            self.found.interludes.append("a run was paused and resumed")
        self._resume(run)

    def _signal_a_program(self) -> None:
        """A training program is told to end, which pauses its run; then it is resumed."""
        run = self._some_run()
        while program_pid(run.trace.run_dir) is None and not self._has_ended(run):
            time.sleep(LOOK_EVERY_SECONDS)
        pid = program_pid(run.trace.run_dir)
        # Before it has taken the lock it has not asked for signals either: then it dies of this one, as of a kill.
        if pid is None or run.trace.refresh().newest is None or not run.trace.newest or not run.trace.newest.trained:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        self.found.interludes.append("a program was told to end by SIGTERM, and its run resumed")
        self._resume(run)

    def _resume(self, run: Battered) -> None:
        self._server.wait_ready()
        until = time.monotonic() + PAUSE_SECONDS
        while self._status(run) != "paused":
            if self._has_ended(run):
                return
            if time.monotonic() > until:
                self.found.violations.append(f"run {run.run_id} was not paused within {PAUSE_SECONDS:.0f} s")
                return
            time.sleep(LOOK_EVERY_SECONDS)
        time.sleep(self._chance.uniform(0.0, 1.0))
        self._server.client.runs.resume(run.run_id)

    def _some_run(self) -> Battered:
        self._server.wait_ready()
        self._keep_runs_going()
        return self._chance.choice(self._living())

    def _look_for_leftovers(self) -> None:
        pid = self._server.pid
        assert pid is not None, "the server was waited for"
        self.found.zombies = zombies_of(pid)
        seconds = self._server.terminate()
        if seconds > SERVER_END_SECONDS:
            self.found.violations.append(f"the server took {seconds:.1f} s to end")
        until = time.monotonic() + LEAVE_SECONDS
        while (left := processes_of(self._server.home)) and time.monotonic() < until:
            time.sleep(LOOK_EVERY_SECONDS)
        self.found.orphans = left
        if self.found.zombies:
            self.found.violations.append(f"{len(self.found.zombies)} children of the server were zombies")
        if self.found.orphans:
            self.found.violations.append(f"processes were left behind: {self.found.orphans}")

    def _living(self) -> list[Battered]:
        statuses = self._facts.statuses()
        return [run for run in self._runs if statuses.get(run.run_id) not in ENDED]

    def _has_ended(self, run: Battered) -> bool:
        return self._status(run) in ENDED

    def _status(self, run: Battered) -> str | None:
        return self._facts.statuses().get(run.run_id)

    def _run_dir(self, run_id: str) -> RunDir:
        return RunDir(self._server.home / "runs" / run_id)

    def _now(self) -> float:
        return time.monotonic() - self._begun
