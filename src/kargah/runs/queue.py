"""The queue: which waiting run starts now, and what each of the others waits for.

Runs start strictly in their order. One that does not fit waits, and so do those behind it, small as they may be: a
large run would otherwise never come to its turn.
"""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kargah.ground.errors import InvalidState
from kargah.runs.ledger import Ledger
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.states import ACTIVE, RunState


class WaitsFor(StrEnum):
    """What a run in the queue waits for."""

    SUPERVISOR = "supervisor"
    """Nothing: it starts at the supervisor's next look."""
    TURN = "turn"
    """The runs before it, which wait too."""
    SLOT = "slot"
    """One of the runs under way has to end first: only so many run at once."""
    MEMORY = "memory"
    """Beside the runs under way it has no room in the memory."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What this machine offers to runs: how many at once, bytes of memory for all of them, GPUs by their numbers."""

    slots: int
    memory_bytes: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run in the queue, at `position` from 1. The bytes are of the memory, where that is what it waits for."""

    run_id: str
    position: int
    waits_for: WaitsFor
    needed_bytes: int | None = None
    free_bytes: int | None = None


def waiting_runs(session: Session, capacity: Capacity) -> list[Waiting]:
    """The queue in its order. Those that wait for the supervisor alone are to be started, in this order."""
    under_way = session.scalars(select(RunRow.reserved_bytes).where(RunRow.status.in_(list(ACTIVE)))).all()
    busy, taken = len(under_way), sum(reserved or 0 for reserved in under_way)
    found: list[Waiting] = []
    blocked = False
    for position, run in enumerate(_in_order(session), start=1):
        needed, free = run.reserved_bytes or 0, capacity.memory_bytes - taken
        if blocked:
            found.append(Waiting(run.id, position, WaitsFor.TURN))
        elif busy >= capacity.slots:
            blocked = True
            found.append(Waiting(run.id, position, WaitsFor.SLOT))
        elif busy and needed > free:
            # Alone it may try: the estimate is careful, and nobody else would be hurt.
            blocked = True
            found.append(Waiting(run.id, position, WaitsFor.MEMORY, needed, max(0, free)))
        else:
            busy, taken = busy + 1, taken + needed
            found.append(Waiting(run.id, position, WaitsFor.SUPERVISOR))
    return found


def last_place(session: Session) -> int:
    """The place behind everybody who waits."""
    waiting = select(func.max(RunRow.place)).where(RunRow.status == RunState.QUEUED)
    return (session.scalar(waiting) or 0) + 1


def move(session: Session, ledger: Ledger, run: RunRow, position: int) -> None:
    """Put a waiting run at `position` (from 1; beyond the end is the end). Raises `InvalidState` for any other."""
    if run.status != RunState.QUEUED:
        raise InvalidState(details={"status": run.status})
    order = [other for other in _in_order(session) if other.id != run.id]
    order.insert(position - 1, run)
    for place, other in enumerate(order, start=1):
        if other.place != place:
            other.place = place
            ledger.keep(session, other)
    session.flush()
    ledger.events.append(session, "system", "queue", {"order": [other.id for other in order]})


def free_gpu(session: Session, capacity: Capacity) -> int | None:
    """The GPU with the fewest runs on it, the first among equals; None on a machine without."""
    if not capacity.gpus:
        return None
    living = select(AttemptRow.gpu, func.count()).where(AttemptRow.ended_at.is_(None)).group_by(AttemptRow.gpu)
    busy: dict[int | None, int] = {gpu: count for gpu, count in session.execute(living)}  # noqa: C416 - rows are no pairs
    return min(capacity.gpus, key=lambda gpu: (busy.get(gpu, 0), capacity.gpus.index(gpu)))


def _in_order(session: Session) -> list[RunRow]:
    query = select(RunRow).where(RunRow.status == RunState.QUEUED)
    return list(session.scalars(query.order_by(func.coalesce(RunRow.place, 0), RunRow.queued_at, RunRow.id)).all())
