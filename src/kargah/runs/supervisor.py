"""The supervisor: starts queued runs, takes their journals in, and sees how they end. The only writer of run states.

One thread looks at every active attempt a few times a second. What it needs to know stands on disk: the journal (what
happened), `exit.json` (how it ended), the lock (whether it lives). So a server that was killed and started again goes
on where the other left off, while the training programs never notice.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from kargah.assets.registry import Registry
from kargah.ground.db import Database
from kargah.ground.ids import now
from kargah.runs.endings import DISK_FULL, settle, tries_again
from kargah.runs.executor import LocalExecutor
from kargah.runs.ingest import Ingest, RecordDamaged, mend_checkpoints
from kargah.runs.ledger import Ledger
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.queue import Capacity, WaitsFor, free_gpu, last_place, waiting_runs
from kargah.runs.silence import Silence
from kargah.runs.states import AttemptState, RunState, transition
from kargah.spec.control import Exit, Outcome, Wish, read_exit, write_wish
from kargah.spec.journal import read_journal
from kargah.spec.layout import AttemptDir, RunDir
from kargah.spec.lock import holder_pid

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.4
STARTING_GRACE = timedelta(seconds=10)
ROOM_EVERY_SECONDS = 5.0
REST_SECONDS = 1.0
"""After a round that a full disk or a locked database broke off, and for a run whose own look failed."""


@dataclass(frozen=True, slots=True)
class HungPolicy:
    """When a living program that says nothing counts as hung, and what is done about it. 0 seconds: never."""

    after_seconds: float = 600.0
    action: Literal["flag", "restart"] = "flag"


@dataclass(frozen=True, slots=True)
class _Active:
    run_id: str
    number: int
    offset: int
    pid: int | None
    state: str
    young: bool
    is_silent: bool


@dataclass(slots=True)
class _Memory:
    """What the thread remembers from round to round."""

    silence: Silence = field(default_factory=Silence)
    rests_until: dict[str, float] = field(default_factory=dict)
    room_asked_at: float = 0.0


class Supervisor:
    """Owns the thread. `start` and `stop` frame its life; `wake` makes it look at once."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        registry: Registry,
        executor: LocalExecutor,
        capacity: Capacity,
        hung: HungPolicy | None = None,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._registry = registry
        self._executor = executor
        self.capacity = capacity
        self._hung = hung or HungPolicy()
        self._ingest = Ingest(ledger, registry)
        self._memory = _Memory()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="supervisor", daemon=True)

    def start(self) -> None:
        """Begin to look. Attempts that a former server started are found by their rows and attached again."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; training programs go on."""
        self._ending.set()
        self._wake.set()
        self._thread.join(timeout=10)

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def run_dir(self, run_id: str) -> RunDir:
        """The directory of a run."""
        return self._ledger.run_dir(run_id)

    def kill(self, run: RunRow) -> None:
        """End the program of a run at once, with no checkpoint; the next look sees it gone."""
        with self._database.read() as session:
            attempt = session.get(AttemptRow, (run.id, run.attempt)) if run.attempt else None
        if attempt is not None and attempt.ended_at is None:
            self._executor.kill(self.run_dir(run.id), attempt.pid)
        self.wake()

    def look(self) -> None:
        """One round: what the active attempts say, then what waits."""
        self._ledger.catch_up()
        for active in self._active():
            self._look_at(active)
        self._resume_where_there_is_room()
        self._start_waiting()

    def _work(self) -> None:
        while not self._ending.is_set():
            self._wake.clear()
            try:
                self.look()
            except Exception as error:
                # The outermost edge of the thread: without it every run would stand still. A full disk or a locked
                # database: nothing was lost, the journals keep it; look again.
                log.exception("the supervisor could not finish a round")
                if isinstance(error, OperationalError) and "full" in str(error):
                    self._registry.home.give_reserve()
                self._ending.wait(REST_SECONDS)
            self._wake.wait(LOOK_EVERY_SECONDS)

    def _active(self) -> list[_Active]:
        living = AttemptRow.state.in_([AttemptState.STARTING, AttemptState.RUNNING])
        query = select(AttemptRow, RunRow.silent_since).join(RunRow, RunRow.id == AttemptRow.run_id).where(living)
        limit = now() - STARTING_GRACE
        with self._database.read() as session:
            return [
                _Active(a.run_id, a.number, a.journal_offset, a.pid, a.state, a.started_at > limit, since is not None)
                for a, since in session.execute(query.order_by(AttemptRow.started_at)).all()
            ]

    def _look_at(self, active: _Active) -> None:
        """Look at one attempt. What goes wrong with it is its own affair: the others are looked at all the same."""
        if self._memory.rests_until.get(active.run_id, 0.0) > time.monotonic():
            return
        try:
            self._follow(active)
        except OperationalError:
            raise
        except Exception:  # the outermost edge of one run's supervision
            log.exception("run %s could not be looked at", active.run_id)
            self._memory.rests_until[active.run_id] = time.monotonic() + REST_SECONDS

    def _follow(self, active: _Active) -> None:
        run_dir = self.run_dir(active.run_id)
        # Asked before reading: what a dying program wrote last is then surely read below.
        alive = self._executor.alive(run_dir, active.pid)
        attempt_dir = run_dir.attempt(active.number)
        try:
            self._take_in(active, attempt_dir)
        except (RecordDamaged, ValueError):
            # Nothing behind a damaged record can be trusted: the next attempt trains it again.
            log.exception("the journal of run %s is damaged", active.run_id)
            if alive:
                self._executor.kill(run_dir, active.pid)
            else:
                self._lose(active)
            return
        ended = read_exit(attempt_dir.exit)
        if alive:
            self._listen(active, attempt_dir)
        elif ended is not None:
            self._finish(active, ended)
        elif not (active.state == AttemptState.STARTING and active.young and active.pid is None):
            self._lose(active)

    def _take_in(self, active: _Active, attempt_dir: AttemptDir) -> None:
        offset = active.offset
        while True:
            part = read_journal(attempt_dir.journal, offset)
            if not part.records:
                return
            with self._database.write() as session:
                run, attempt = _rows(session, active)
                self._ingest.take(session, run, attempt, part)
            offset = part.offset

    def _listen(self, active: _Active, attempt_dir: AttemptDir) -> None:
        """Flag a living program that has been silent for too long, and take the flag back when it speaks again."""
        if not self._hung.after_seconds:
            return
        seconds, spoke = self._memory.silence.listen(attempt_dir)
        is_silent = seconds >= self._hung.after_seconds
        # A flag may be a former server's: it stays until this one has heard something.
        if is_silent == active.is_silent or (active.is_silent and not spoke):
            return
        with self._database.write() as session:
            run, attempt = _rows(session, active)
            run.silent_since = now() - timedelta(seconds=seconds) if is_silent else None
            if not is_silent:
                self._ingest.tell(session, run, attempt, "info", "programSpeaks")
            elif self._hung.action == "flag":
                self._ingest.tell(session, run, attempt, "warning", "programSilent", seconds=round(seconds))
            else:
                self._ingest.tell(session, run, attempt, "warning", "programEnded", seconds=round(seconds))
        if is_silent and self._hung.action == "restart":
            self._executor.kill(self.run_dir(active.run_id), active.pid)

    def _finish(self, active: _Active, ended: Exit) -> None:
        self._executor.reap(active.pid)
        with self._database.write() as session:
            run, attempt = self._close(session, active, AttemptState.EXITED, ended.error)
            may_help = ended.outcome is Outcome.FAILED and ended.retryable and ended.error != DISK_FULL
            if may_help and tries_again(run):
                self._launch(session, run)
                return
            settle(session, self._ledger, self._registry, run, ended)
            if ended.error == DISK_FULL and run.status == RunState.PAUSED:
                needed = (run.error_params or {}).get("neededBytes", 0)
                self._ingest.tell(session, run, attempt, "warning", "pausedForRoom", neededBytes=needed)

    def _lose(self, active: _Active) -> None:
        code = self._executor.reap(active.pid)
        log.warning("attempt %s of run %s is gone without an ending (exit code %s)", active.number, active.run_id, code)
        with self._database.write() as session:
            run, attempt = self._close(session, active, AttemptState.LOST, f"exit code {code}")
            if code is None:
                self._ingest.tell(session, run, attempt, "warning", "attemptGone", attempt=active.number)
            else:
                details = {"attempt": active.number, "exitCode": code}
                self._ingest.tell(session, run, attempt, "warning", "attemptDied", **details)
            if run.status == RunState.STOPPING:
                ended = Exit(Outcome.STOPPED, run.step)
            elif run.status == RunState.PAUSING:
                ended = Exit(Outcome.PAUSED, run.step)
            elif tries_again(run):
                self._launch(session, run)
                return
            else:
                ended = Exit(Outcome.FAILED, run.step, error="RUN_LOST")
            settle(session, self._ledger, self._registry, run, ended)

    def _close(
        self, session: Session, active: _Active, state: AttemptState, error: str | None
    ) -> tuple[RunRow, AttemptRow]:
        run, attempt = _rows(session, active)
        attempt.state, attempt.error, attempt.ended_at = state, error, now()
        run.silent_since = None
        self._memory.silence.forget(self.run_dir(run.id).attempt(active.number))
        mend_checkpoints(session, self._registry, run, self.run_dir(run.id).root)
        return run, attempt

    def _resume_where_there_is_room(self) -> None:
        """Put runs that found the disk full back into the queue once it has room for them, in their old order."""
        if time.monotonic() - self._memory.room_asked_at < ROOM_EVERY_SECONDS:
            return
        self._memory.room_asked_at = time.monotonic()
        home = self._registry.home
        free = home.free_bytes()
        home.take_reserve()
        held_up = select(RunRow.id).where(
            RunRow.status == RunState.PAUSED, RunRow.error == DISK_FULL, RunRow.wish == Wish.RUN.value
        )
        with self._database.read() as session:
            waiting = list(session.scalars(held_up.order_by(RunRow.queued_at, RunRow.id)).all())
        for run_id in waiting:
            with self._database.write() as session:
                run = session.get_one(RunRow, run_id)
                free -= (run.error_params or {}).get("neededBytes", 0)
                if free < 0:
                    return
                if run.status == RunState.PAUSED and run.wish == Wish.RUN.value:
                    requeue(session, self._ledger, run)
                    attempt = session.get_one(AttemptRow, (run.id, run.attempt))
                    self._ingest.tell(session, run, attempt, "info", "roomAgain")

    def _start_waiting(self) -> None:
        with self._database.read() as session:
            waiting = waiting_runs(session, self.capacity)
        for run_id in [one.run_id for one in waiting if one.waits_for is WaitsFor.SUPERVISOR]:
            with self._database.write() as session:
                run = session.get_one(RunRow, run_id)
                if run.status == RunState.QUEUED:
                    transition(session, self._ledger, run, RunState.PREPARING, place=None)
                    if self.run_dir(run.id).spec.is_file():
                        self._launch(session, run)
                    else:
                        ended = Exit(Outcome.FAILED, run.step, error="SPEC_INVALID")
                        settle(session, self._ledger, self._registry, run, ended)

    def _launch(self, session: Session, run: RunRow) -> None:
        """Start the next attempt.

        A crash between the start and the commit leaves a child the database does not know. It holds the lock or has
        left a journal under the very number that comes next, so it is attached instead of started a second time.
        """
        number = run.attempt + 1
        run_dir = self.run_dir(run.id)
        run.attempt = number
        write_wish(run_dir.control, run.wish_seq, Wish(run.wish))
        attempt = AttemptRow(
            run_id=run.id,
            number=number,
            state=AttemptState.STARTING,
            host=self._executor.host,
            gpu=free_gpu(session, self.capacity),
            started_at=now(),
        )
        session.add(attempt)
        session.flush()
        self._ledger.keep(session, run)
        needed = run.reserved_bytes or 0
        if needed > self.capacity.memory_bytes:
            details = {"neededBytes": needed, "memoryBytes": self.capacity.memory_bytes}
            self._ingest.tell(session, run, attempt, "warning", "memoryTight", **details)
        if not run_dir.attempt(number).journal.exists() and holder_pid(run_dir.lock) is None:
            attempt.pid = self._executor.submit(run_dir, number, attempt.gpu)


def requeue(session: Session, ledger: Ledger, run: RunRow) -> None:
    """Put a paused run at the end of the queue. Raises `InvalidState` when it is not paused."""
    transition(
        session,
        ledger,
        run,
        RunState.QUEUED,
        wish=Wish.RUN.value,
        wish_seq=run.wish_seq + 1,
        place=last_place(session),
        queued_at=now(),
        error=None,
        error_params=None,
    )


def _rows(session: Session, active: _Active) -> tuple[RunRow, AttemptRow]:
    return session.get_one(RunRow, active.run_id), session.get_one(AttemptRow, (active.run_id, active.number))
