"""What becomes of a run when one of its attempts is over: its next state, or that it may be tried once more."""

from sqlalchemy.orm import Session

from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.metrics import store
from kargah.runs.checkpoint_kept import release_run
from kargah.runs.ledger import Ledger
from kargah.runs.models import RunRow
from kargah.runs.states import ENDED, RunState, transition
from kargah.spec.control import Exit, Outcome, Wish

MAX_LOSSES = 3
"""A run whose program dies this often in a row without a new checkpoint is given up."""

DISK_FULL = "DISK_FULL"
ROOM_MARGIN_BYTES = 16 * 1024 * 1024


def tries_again(run: RunRow) -> bool:
    """Count a loss, and tell whether there may be another attempt."""
    run.num_losses += 1
    return run.num_losses <= MAX_LOSSES and run.status in (RunState.PREPARING, RunState.RUNNING)


def settle(session: Session, ledger: Ledger, registry: Registry, run: RunRow, ended: Exit) -> None:
    """Move a run whose last attempt is over to where `ended` leaves it, and let go of what it held."""
    if ended.outcome is Outcome.PAUSED or ended.error == DISK_FULL:
        _pause(session, ledger, registry, run, ended)
    else:
        _end(session, ledger, registry, run, ended)


def needed_bytes(session: Session, run: RunRow) -> int:
    """Room that a run which found the disk full needs to go on: for two more checkpoints, and a margin for words."""
    kept = session.get(AssetRow, ("checkpoint", run.last_checkpoint)) if run.last_checkpoint else None
    if kept is not None and kept.size_bytes:
        return 2 * kept.size_bytes + ROOM_MARGIN_BYTES
    base = session.get(AssetRow, ("model", run.base_model)) or session.get(AssetRow, ("checkpoint", run.base_model))
    # Weights and the optimiser's two moments of each.
    return 2 * 3 * ((base.size_bytes or 0) if base else 0) + ROOM_MARGIN_BYTES


def _pause(session: Session, ledger: Ledger, registry: Registry, run: RunRow, ended: Exit) -> None:
    status = RunState(run.status)
    if status is RunState.STOPPING:
        _end(session, ledger, registry, run, Exit(Outcome.STOPPED, ended.step))
        return
    values: dict[str, object] = {}
    if ended.error == DISK_FULL:
        # The wish stays: the supervisor resumes the run when there is room, unless a person had paused it.
        values = {"error": DISK_FULL, "error_params": {"neededBytes": needed_bytes(session, run)}}
    if status is not RunState.PAUSING:
        if status is RunState.PREPARING:
            transition(session, ledger, run, RunState.RUNNING)
        # The program was told by a signal, or by the disk, and not by a wish.
        wish = {} if ended.error == DISK_FULL else {"wish": Wish.PAUSE.value}
        transition(session, ledger, run, RunState.PAUSING, **wish)
    transition(session, ledger, run, RunState.PAUSED, **values)


def _end(session: Session, ledger: Ledger, registry: Registry, run: RunRow, ended: Exit) -> None:
    status = RunState(run.status)
    values: dict[str, object] = {}
    if ended.outcome is Outcome.FAILED:
        to, values = RunState.FAILED, {"error": ended.error or "INTERNAL", "error_params": ended.params}
    else:
        to = RunState.COMPLETED if ended.outcome is Outcome.COMPLETED else RunState.STOPPED
        if status is RunState.PREPARING:
            transition(session, ledger, run, RunState.RUNNING)
        elif status is RunState.PAUSING and to is RunState.STOPPED:
            transition(session, ledger, run, RunState.STOPPING)
    assert to in ENDED
    if ended.outcome is not Outcome.FAILED:
        store.drop_after(session, run.id, ended.step)
        values["step"] = ended.step
    release_run(session, registry, ledger, run.id)
    transition(session, ledger, run, to, **values)
