"""What people may wish of runs: start, stop, pause, resume. States are the supervisor's; a wish is written here."""

import shutil
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from kargah.assets.registry import Registry
from kargah.ground.db import Database
from kargah.ground.errors import DiskFull, InvalidState, KargahError
from kargah.ground.ids import new_id, now
from kargah.runs import queue
from kargah.runs.checkpoint_kept import keep_used
from kargah.runs.endings import DISK_FULL, settle
from kargah.runs.errors import ComputeMissing, RunNotFound
from kargah.runs.executor import compute_installed
from kargah.runs.ledger import Ledger
from kargah.runs.memory import reservation
from kargah.runs.models import RunRow, row_of
from kargah.runs.planning import plan_run
from kargah.runs.schemas import StartBody
from kargah.runs.states import ENDED, RunState, transition
from kargah.runs.supervisor import Supervisor, requeue
from kargah.spec.control import Exit, Outcome, Wish, write_wish
from kargah.spec.layout import write_json
from kargah.spec.run_spec import RunSpec


class Runs:
    """The runs of this installation."""

    def __init__(
        self, database: Database, ledger: Ledger, registry: Registry, supervisor: Supervisor, *, has_gpu: bool
    ) -> None:
        self.database = database
        self.ledger = ledger
        self.registry = registry
        self.supervisor = supervisor
        self.has_gpu = has_gpu

    def start(self, body: StartBody, origin: dict[str, Any] | None = None) -> RunRow:
        """Take a run into the queue. Raises what `plan_run` raises, `ComputeMissing` and `DiskFull`."""
        if not compute_installed():
            raise ComputeMissing()
        # Planning reads the data's labels, which may take a while: nobody's write waits for it.
        with self.database.read() as session:
            plan = plan_run(session, self.registry, new_id(), body, has_gpu=self.has_gpu)
        return self.enqueue(plan.spec, plan.uses, origin)

    def enqueue(self, spec: RunSpec, uses: list[tuple[str, str]], origin: dict[str, Any] | None = None) -> RunRow:
        """Put a planned run into the queue; it holds `uses` (pairs of kind and id) until it ends.

        Raises what `Registry.require_ready` raises, `AssetNotReady` for a checkpoint that just made way for a newer
        one, and `DiskFull`.
        """
        folder = self.supervisor.run_dir(spec.run_id)
        try:
            with self.database.write() as session:
                for kind, asset_id in uses:
                    self.registry.require_ready(session, (kind,), asset_id)
                folder.root.mkdir(parents=True)
                write_json(folder.spec, spec.to_json())
                row = self._insert(session, spec, uses, origin)
        except KargahError:
            shutil.rmtree(folder.root, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(folder.root, ignore_errors=True)
            raise DiskFull() from error
        self.supervisor.wake()
        return row

    def get(self, session: Session, any_id: str) -> RunRow:
        """The run under its own id or its job's. Raises `RunNotFound`."""
        row = session.scalars(select(RunRow).where(or_(RunRow.id == any_id, RunRow.job_id == any_id))).first()
        if row is None:
            raise RunNotFound(id=any_id)
        return row

    def stop(self, any_id: str, *, force: bool = False) -> RunRow:
        """End a run, with a checkpoint if it trains; with `force` at once, as the last checkpoint left it.

        A second request changes nothing, but may add the force. Raises `RunNotFound`, `InvalidState`, `DiskFull`.
        """
        run = self._wish(any_id, Wish.STOP, RunState.STOPPING)
        if force and run.status == RunState.STOPPING:
            self.supervisor.kill(run)
        return run

    def pause(self, any_id: str) -> RunRow:
        """Let a run write a checkpoint and leave the machine. A second request changes nothing.

        A run that was paused because the disk is full stays so, whatever room there will be. Raises `RunNotFound`,
        `InvalidState`, `DiskFull`.
        """
        return self._wish(any_id, Wish.PAUSE, RunState.PAUSING)

    def resume(self, any_id: str) -> RunRow:
        """Put a paused run into the queue again. Raises `RunNotFound`, `InvalidState`."""
        with self.database.write() as session:
            run = self.get(session, any_id)
            requeue(session, self.ledger, run)
        self.supervisor.wake()
        return run

    def move(self, any_id: str, position: int) -> None:
        """Put a waiting run at `position` of the queue, from 1. Raises `RunNotFound`, `InvalidState`."""
        with self.database.write() as session:
            queue.move(session, self.ledger, self.get(session, any_id), position)
        self.supervisor.wake()

    def _wish(self, any_id: str, wish: Wish, towards: RunState) -> RunRow:
        with self.database.write() as session:
            run = self.get(session, any_id)
            before = RunState(run.status)
            if before is towards:
                return run
            if before in ENDED:
                raise InvalidState(details={"status": before.value})
            if before is RunState.PAUSED and wish is Wish.PAUSE and run.error == DISK_FULL:
                run.wish = wish.value
                self.ledger.keep(session, run)
                return run
            transition(session, self.ledger, run, towards, wish=wish.value, wish_seq=run.wish_seq + 1, place=None)
            if before in (RunState.QUEUED, RunState.PAUSED):
                run.error = run.error_params = None
                settle(session, self.ledger, self.registry, run, Exit(Outcome.STOPPED, run.step))
            else:
                try:
                    write_wish(self.supervisor.run_dir(run.id).control, run.wish_seq, wish)
                except OSError as error:
                    raise DiskFull() from error
        self.supervisor.wake()
        return run

    def _insert(
        self, session: Session, spec: RunSpec, uses: list[tuple[str, str]], origin: dict[str, Any] | None
    ) -> RunRow:
        row = row_of(
            spec,
            job_id=new_id(),
            name=spec.name,
            status=RunState.QUEUED,
            wish=Wish.RUN.value,
            wish_seq=0,
            attempt=0,
            num_losses=0,
            step=0,
            origin=origin,
            place=queue.last_place(session),
            reserved_bytes=reservation(spec),
            queued_at=now(),
            created_at=now(),
        )
        session.add(row)
        session.flush()
        self.registry.hold(session, f"run:{row.id}", uses)
        keep_used(session, self.registry, self.ledger, uses)
        self.ledger.keep(session, row)
        self.ledger.events.append(
            session, f"runs:{row.id}", "state", {"runId": row.id, "status": row.status, "final": False, "error": None}
        )
        return row
