"""The supervisor: starts queued runs, takes their journals in, and sees how they end. The only writer of run states.

One thread looks at every active attempt a few times a second. What it needs to know stands on disk: the journal (what
happened), `exit.json` (how it ended), the lock (whether it lives). So a server that was killed and started again goes
on where the other left off, while the training programs never notice.
"""

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from kargah.assets.registry import Registry
from kargah.ground.db import Database
from kargah.ground.ids import now
from kargah.metrics import store
from kargah.runs.executor import LocalExecutor
from kargah.runs.ingest import Ingest, RecordDamaged, mend_checkpoints
from kargah.runs.ledger import Ledger
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.states import ACTIVE, ENDED, AttemptState, RunState, transition
from kargah.spec.control import Exit, Outcome, Wish, read_exit, write_wish
from kargah.spec.journal import read_journal
from kargah.spec.layout import AttemptDir, RunDir
from kargah.spec.lock import holder_pid

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.2
STARTING_GRACE = timedelta(seconds=10)
MAX_LOSSES = 3
"""A run whose program dies this often in a row without a new checkpoint is given up."""


@dataclass(frozen=True, slots=True)
class _Active:
    run_id: str
    number: int
    offset: int
    pid: int | None
    state: str
    young: bool


class Supervisor:
    """Owns the thread. `start` and `stop` frame its life; `wake` makes it look at once."""

    def __init__(
        self, database: Database, ledger: Ledger, registry: Registry, executor: LocalExecutor, slots: int
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._registry = registry
        self._executor = executor
        self._slots = slots
        self._ingest = Ingest(ledger, registry)
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="supervisor", daemon=True)

    @property
    def slots(self) -> int:
        return self._slots

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

    def look(self) -> None:
        """One round: what the active attempts say, then what waits."""
        for active in self._active():
            self._look_at(active)
        self._start_waiting()

    def _work(self) -> None:
        while not self._ending.is_set():
            self._wake.clear()
            try:
                self.look()
            except (OSError, OperationalError):
                # A full disk or a locked database: nothing was lost, the journals keep it; look again.
                log.exception("the supervisor could not finish a round")
                self._ending.wait(1)
            self._wake.wait(LOOK_EVERY_SECONDS)

    def _active(self) -> list[_Active]:
        query = select(AttemptRow).where(AttemptRow.state.in_([AttemptState.STARTING, AttemptState.RUNNING]))
        limit = now() - STARTING_GRACE
        with self._database.read() as session:
            return [
                _Active(a.run_id, a.number, a.journal_offset, a.pid, a.state, a.started_at > limit)
                for a in session.scalars(query.order_by(AttemptRow.started_at)).all()
            ]

    def _look_at(self, active: _Active) -> None:
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
                self._executor.kill(run_dir)
            else:
                self._lose(active)
            return
        ended = read_exit(attempt_dir.exit)
        if ended is not None and not alive:
            self._finish(active, ended)
        elif not alive and not (active.state == AttemptState.STARTING and active.young and active.pid is None):
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

    def _finish(self, active: _Active, ended: Exit) -> None:
        self._executor.reap(active.pid)
        with self._database.write() as session:
            run, attempt = _rows(session, active)
            self._close(attempt, AttemptState.EXITED, ended.error)
            if ended.outcome is Outcome.FAILED and ended.retryable and self._try_again(session, run):
                return
            self._settle(session, run, ended)

    def _lose(self, active: _Active) -> None:
        code = self._executor.reap(active.pid)
        log.warning("attempt %s of run %s is gone without an ending (exit code %s)", active.number, active.run_id, code)
        with self._database.write() as session:
            run, attempt = _rows(session, active)
            self._close(attempt, AttemptState.LOST, f"exit code {code}")
            if code is None:
                self._ingest.warn(session, run, attempt, "attemptGone", attempt=active.number)
            else:
                self._ingest.warn(session, run, attempt, "attemptDied", attempt=active.number, exitCode=code)
            if run.status == RunState.STOPPING:
                self._settle(session, run, Exit(Outcome.STOPPED, run.step))
            elif run.status == RunState.PAUSING:
                self._settle(session, run, Exit(Outcome.PAUSED, run.step))
            elif not self._try_again(session, run):
                self._settle(session, run, Exit(Outcome.FAILED, run.step, error="RUN_LOST"))

    @staticmethod
    def _close(attempt: AttemptRow, state: AttemptState, error: str | None) -> None:
        attempt.state, attempt.error, attempt.ended_at = state, error, now()

    def _try_again(self, session: Session, run: RunRow) -> bool:
        run.num_losses += 1
        if run.num_losses > MAX_LOSSES or run.status not in (RunState.PREPARING, RunState.RUNNING):
            return False
        mend_checkpoints(session, self._registry, run, self.run_dir(run.id).root)
        self._launch(session, run)
        return True

    def _settle(self, session: Session, run: RunRow, ended: Exit) -> None:
        mend_checkpoints(session, self._registry, run, self.run_dir(run.id).root)
        status = RunState(run.status)
        values: dict[str, object] = {}
        if ended.outcome is Outcome.PAUSED:
            to = RunState.PAUSED
            if status is RunState.STOPPING:
                to = RunState.STOPPED
            elif status is not RunState.PAUSING:
                # The program was told by a signal, not by a wish.
                if status is RunState.PREPARING:
                    transition(session, self._ledger, run, RunState.RUNNING)
                transition(session, self._ledger, run, RunState.PAUSING, wish=Wish.PAUSE.value)
        elif ended.outcome is Outcome.FAILED:
            to, values = RunState.FAILED, {"error": ended.error or "INTERNAL", "error_params": ended.params}
        else:
            to = RunState.COMPLETED if ended.outcome is Outcome.COMPLETED else RunState.STOPPED
            if status is RunState.PREPARING:
                transition(session, self._ledger, run, RunState.RUNNING)
            elif status is RunState.PAUSING and to is RunState.STOPPED:
                transition(session, self._ledger, run, RunState.STOPPING)
        if to in ENDED:
            if ended.outcome is not Outcome.FAILED:
                store.drop_after(session, run.id, ended.step)
                values["step"] = ended.step
            self._registry.release(session, f"run:{run.id}")
        transition(session, self._ledger, run, to, **values)

    def _start_waiting(self) -> None:
        with self._database.read() as session:
            busy = len(session.scalars(select(RunRow.id).where(RunRow.status.in_(list(ACTIVE)))).all())
            if busy >= self._slots:
                return
            query = select(RunRow.id).where(RunRow.status == RunState.QUEUED).order_by(RunRow.queued_at, RunRow.id)
            waiting = list(session.scalars(query.limit(self._slots - busy)).all())
        for run_id in waiting:
            with self._database.write() as session:
                run = session.get_one(RunRow, run_id)
                if run.status == RunState.QUEUED:
                    transition(session, self._ledger, run, RunState.PREPARING)
                    if self.run_dir(run.id).spec.is_file():
                        self._launch(session, run)
                    else:
                        self._settle(session, run, Exit(Outcome.FAILED, run.step, error="SPEC_INVALID"))

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
            run_id=run.id, number=number, state=AttemptState.STARTING, host=self._executor.host, started_at=now()
        )
        session.add(attempt)
        session.flush()
        if not run_dir.attempt(number).journal.exists() and holder_pid(run_dir.lock) is None:
            attempt.pid = self._executor.submit(run_dir, number)


def _rows(session: Session, active: _Active) -> tuple[RunRow, AttemptRow]:
    return session.get_one(RunRow, active.run_id), session.get_one(AttemptRow, (active.run_id, active.number))
