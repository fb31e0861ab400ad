"""What is known of a run beside its journals: by the record that a server kept, or by what stands in the directory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kargah.ground.ids import new_id, parse_rfc3339
from kargah.runs.ledger import Record
from kargah.runs.states import ACTIVE, ENDED, AttemptState, RunState
from kargah.spec.control import Exit, Outcome, Wish, read_exit
from kargah.spec.layout import AttemptDir, RunDir
from kargah.spec.run_spec import RunSpec

DISK_FULL = "DISK_FULL"


@dataclass(frozen=True, slots=True)
class KnownAttempt:
    """An attempt as its server saw it."""

    state: AttemptState
    host: str
    gpu: int | None
    error: str | None
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Known:
    """A run as it shall be; `attempt` is the number of attempts, `attempts` tells of those a server recorded."""

    job_id: str
    name: str
    status: RunState
    wish: Wish
    created_at: datetime
    queued_at: datetime
    attempt: int
    wish_seq: int = 0
    num_losses: int = 0
    place: int | None = None
    reserved_bytes: int | None = None
    step: int | None = None
    error: str | None = None
    error_params: dict[str, Any] | None = None
    origin: dict[str, Any] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: Mapping[int, KnownAttempt] = field(default_factory=dict)


def known_by_record(record: Record) -> Known:
    """What a server's record says. Raises `KeyError`, `TypeError` or `ValueError` for a damaged one."""
    return Known(
        job_id=str(record["jobId"]),
        name=str(record["name"]),
        status=RunState(record["status"]),
        wish=Wish(record["wish"]),
        wish_seq=int(record["wishSeq"]),
        attempt=int(record["attempt"]),
        num_losses=int(record["numLosses"]),
        place=record["place"],
        reserved_bytes=record.get("reservedBytes"),
        step=record.get("step"),
        error=record["error"],
        error_params=record["errorParams"],
        origin=record["origin"],
        created_at=parse_rfc3339(record["createdAt"]),
        queued_at=parse_rfc3339(record["queuedAt"]),
        started_at=_time(record["startedAt"]),
        finished_at=_time(record["finishedAt"]),
        attempts={int(one["number"]): _attempt(one) for one in record.get("attempts", [])},
    )


def known_by_files(run_dir: RunDir, spec: RunSpec, *, is_alive: bool) -> Known:
    """A run that no server knows: its last attempt decides. One without an ending is paused, if it does not live."""
    numbers = run_dir.attempt_numbers()
    ended = ending_of(run_dir.attempt(numbers[-1])) if numbers else None
    status = RunState.PAUSED
    failure: Exit | None = None
    if is_alive and numbers:
        status = RunState.RUNNING
    elif ended is not None and ended.outcome is Outcome.FAILED:
        failure = ended
        # Of a disk that was full nobody need know why the run failed: it goes on where there is room.
        status = RunState.PAUSED if ended.error == DISK_FULL else RunState.FAILED
    elif ended is not None:
        status = RunState(ended.outcome.value)
    created_at = _created_at(run_dir, spec)
    return Known(
        job_id=new_id(),
        name=spec.name,
        status=status,
        wish=Wish.PAUSE if status is RunState.PAUSED else Wish.RUN,
        attempt=numbers[-1] if numbers else 0,
        created_at=created_at,
        queued_at=created_at,
        finished_at=parse_rfc3339(ended.at) if ended is not None and status in ENDED else None,
        error=(failure.error or "INTERNAL") if failure is not None else None,
        error_params=failure.params if failure is not None else None,
    )


def is_over(known: Known) -> bool:
    """Whether none of the run's attempts is under way."""
    return known.status not in ACTIVE


def ending_of(attempt: AttemptDir) -> Exit | None:
    """What an attempt left behind, or None; also when that cannot be read."""
    try:
        return read_exit(attempt.exit)
    except (ValueError, KeyError, TypeError):
        return None


def uses_of(spec: RunSpec, origin: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Pairs of kind and id of what an unfinished run must find."""
    models = [spec.base_model, *([spec.teacher_model] if spec.teacher_model else [])]
    uses = [(model.kind, model.id) for model in models] + [("dataset", dataset.id) for dataset in spec.datasets]
    restored = (origin or {}).get("checkpointId") if spec.resume_from is not None else None
    return uses + ([("checkpoint", str(restored))] if restored else [])


def _attempt(value: Any) -> KnownAttempt:
    return KnownAttempt(
        state=AttemptState(value["state"]),
        host=str(value["host"]),
        gpu=value["gpu"],
        error=value["error"],
        started_at=parse_rfc3339(value["startedAt"]),
        ended_at=_time(value["endedAt"]),
    )


def _created_at(run_dir: RunDir, spec: RunSpec) -> datetime:
    try:
        told = _time(spec.created_at)
    except ValueError:
        told = None
    if told is not None and told.tzinfo is not None:
        return told
    return datetime.fromtimestamp(run_dir.spec.stat().st_mtime, UTC)


def _time(text: str | None) -> datetime | None:
    return parse_rfc3339(text) if text else None
