"""The states of a run and of an attempt, the tables of allowed transitions, and the one function that moves a run."""

from enum import StrEnum
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from kargah.ground.errors import InvalidState
from kargah.ground.ids import now
from kargah.runs.ledger import Ledger
from kargah.runs.models import RunRow


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"


S = RunState

ACTIVE = frozenset({S.PREPARING, S.RUNNING, S.PAUSING, S.STOPPING})
ENDED = frozenset({S.COMPLETED, S.FAILED, S.STOPPED})

TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    S.QUEUED: frozenset({S.PREPARING, S.STOPPING, S.FAILED}),
    S.PREPARING: frozenset({S.RUNNING, S.PAUSING, S.STOPPING, S.FAILED}),
    S.RUNNING: frozenset({S.COMPLETED, S.FAILED, S.PAUSING, S.STOPPING, S.STOPPED}),
    # A run may reach its end, or fail, before it obeys a wish.
    S.PAUSING: frozenset({S.PAUSED, S.STOPPING, S.COMPLETED, S.FAILED}),
    S.PAUSED: frozenset({S.QUEUED, S.STOPPING}),
    S.STOPPING: frozenset({S.STOPPED, S.COMPLETED, S.FAILED}),
    S.STOPPED: frozenset(),
    S.COMPLETED: frozenset(),
    S.FAILED: frozenset(),
}


class AttemptState(StrEnum):
    """Where an attempt stands."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"


ATTEMPT_TRANSITIONS: dict[AttemptState, frozenset[AttemptState]] = {
    AttemptState.STARTING: frozenset({AttemptState.RUNNING, AttemptState.EXITED, AttemptState.LOST}),
    AttemptState.RUNNING: frozenset({AttemptState.EXITED, AttemptState.LOST}),
    AttemptState.EXITED: frozenset(),
    AttemptState.LOST: frozenset(),
}


def transition(session: Session, ledger: Ledger, run: RunRow, to: RunState, **values: Any) -> None:
    """Move `run` to `to` and tell of it, in the caller's transaction; `values` are further columns to set.

    The update is guarded by the state it expects. Raises `InvalidState` when the table forbids the move or somebody
    else moved the run meanwhile.
    """
    current = RunState(run.status)
    if to not in TRANSITIONS[current]:
        raise InvalidState(details={"status": current.value})
    if to in ENDED:
        values.setdefault("finished_at", now())
    guarded = update(RunRow).where(RunRow.id == run.id, RunRow.status == current.value)
    result = session.execute(
        guarded.values(status=to.value, **values), execution_options={"synchronize_session": False}
    )
    if result.rowcount != 1:  # type: ignore[attr-defined]
        raise InvalidState(details={"status": current.value})
    session.refresh(run)
    ledger.keep(session, run)
    ledger.events.append(
        session,
        f"runs:{run.id}",
        "state",
        {"runId": run.id, "status": to.value, "final": to in ENDED, "error": run.error},
    )
