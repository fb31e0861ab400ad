"""What people may wish of runs: start, stop, pause, resume. States are the supervisor's; a wish is written here."""

import shutil

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from kargah.assets.registry import Registry
from kargah.ground.db import Database
from kargah.ground.errors import DiskFull, InvalidState
from kargah.ground.ids import new_id, now
from kargah.runs.errors import ComputeMissing, RunNotFound
from kargah.runs.executor import compute_installed
from kargah.runs.ledger import Ledger
from kargah.runs.models import RunRow
from kargah.runs.planning import Plan, plan_run
from kargah.runs.schemas import StartBody
from kargah.runs.states import ENDED, RunState, transition
from kargah.runs.supervisor import Supervisor
from kargah.spec.control import Wish, write_wish
from kargah.spec.layout import write_json


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

    def start(self, body: StartBody) -> RunRow:
        """Take a run into the queue. Raises what `plan_run` raises, `ComputeMissing` and `DiskFull`."""
        if not compute_installed():
            raise ComputeMissing()
        run_id = new_id()
        folder = self.supervisor.run_dir(run_id)
        # Planning reads the data's labels, which may take a while: nobody's write waits for it.
        with self.database.read() as session:
            plan = plan_run(session, self.registry, run_id, body, has_gpu=self.has_gpu)
        try:
            with self.database.write() as session:
                for kind, asset_id in plan.uses:
                    self.registry.require_ready(session, (kind,), asset_id)
                folder.root.mkdir(parents=True)
                write_json(folder.spec, plan.spec.to_json())
                row = self._insert(session, plan)
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

    def stop(self, any_id: str) -> RunRow:
        """End a run, with a checkpoint if it trains. Raises `RunNotFound`, `InvalidState`."""
        return self._wish(any_id, Wish.STOP, RunState.STOPPING)

    def pause(self, any_id: str) -> RunRow:
        """Let a run write a checkpoint and leave the machine. Raises `RunNotFound`, `InvalidState`."""
        return self._wish(any_id, Wish.PAUSE, RunState.PAUSING)

    def resume(self, any_id: str) -> RunRow:
        """Put a paused run into the queue again. Raises `RunNotFound`, `InvalidState`."""
        with self.database.write() as session:
            run = self.get(session, any_id)
            transition(
                session,
                self.ledger,
                run,
                RunState.QUEUED,
                wish=Wish.RUN.value,
                wish_seq=run.wish_seq + 1,
                queued_at=now(),
            )
        self.supervisor.wake()
        return run

    def _wish(self, any_id: str, wish: Wish, towards: RunState) -> RunRow:
        with self.database.write() as session:
            run = self.get(session, any_id)
            before = RunState(run.status)
            if before is towards:
                if wish is Wish.STOP:
                    raise InvalidState(details={"status": before.value})
                return run
            if before in ENDED:
                raise InvalidState(details={"status": before.value})
            transition(session, self.ledger, run, towards, wish=wish.value, wish_seq=run.wish_seq + 1)
            if before in (RunState.QUEUED, RunState.PAUSED):
                transition(session, self.ledger, run, RunState.STOPPED)
                self.registry.release(session, f"run:{run.id}")
            else:
                write_wish(self.supervisor.run_dir(run.id).control, run.wish_seq, wish)
        self.supervisor.wake()
        return run

    def _insert(self, session: Session, plan: Plan) -> RunRow:
        spec = plan.spec
        row = RunRow(
            id=spec.run_id,
            job_id=new_id(),
            name=spec.name,
            status=RunState.QUEUED,
            task=spec.task,
            base_model=spec.base_model.id,
            teacher_model=spec.teacher_model.id if spec.teacher_model else None,
            datasets=[dataset.id for dataset in spec.datasets],
            spec=spec.to_json(),
            wish=Wish.RUN.value,
            wish_seq=0,
            attempt=0,
            num_losses=0,
            step=0,
            queued_at=now(),
            created_at=now(),
        )
        session.add(row)
        session.flush()
        self.registry.hold(session, f"run:{row.id}", plan.uses)
        self.ledger.keep(session, row)
        self.ledger.events.append(
            session, f"runs:{row.id}", "state", {"runId": row.id, "status": row.status, "final": False, "error": None}
        )
        return row
