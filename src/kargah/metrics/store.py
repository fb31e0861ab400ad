"""Writing and reading `training_metrics` and the log. Writes happen in the caller's transaction, beside the journal's
offset, so that every logged step is stored exactly once however often either side dies."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import Any, cast

from sqlalchemy import Table, case, delete, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from kargah.ground.ids import rfc3339
from kargah.metrics.models import RunLogRow, TrainingMetricRow
from kargah.metrics.sampling import sample

NEWEST_LOGS = 500
TRAINING = ("loss", "throughput", "learning_rate")
EVALUATION = ("val_loss", "accuracy")


@dataclass(frozen=True, slots=True)
class Point:
    """Values measured at one step, either by training (`TRAINING`) or by an evaluation (`EVALUATION`)."""

    step: int
    epoch: float | None
    values: dict[str, float | None]
    non_finite: dict[str, str]
    timestamp: datetime


def write_points(session: Session, run_id: str, attempt: int, points: Iterable[Point]) -> None:
    """Store points in order. A later attempt overwrites a step whole; within an attempt each kind fills its columns."""
    for (names, is_odd), alike in groupby(points, key=lambda point: (tuple(point.values), bool(point.non_finite))):
        rows = [
            {
                "run_id": run_id,
                "step": point.step,
                "epoch": point.epoch,
                **point.values,
                "attempt": attempt,
                "non_finite": json.dumps(point.non_finite) if is_odd else None,
                "timestamp": point.timestamp,
            }
            for point in alike
        ]
        session.execute(_upsert(session.get_bind().dialect.name == "sqlite", names, is_odd), rows)


def drop_after(session: Session, run_id: str, step: int) -> None:
    """Forget steps behind `step`: an earlier attempt reached them, the run as it ended did not."""
    session.execute(delete(TrainingMetricRow).where(TrainingMetricRow.run_id == run_id, TrainingMetricRow.step > step))


def write_log(
    session: Session,
    run_id: str,
    attempt: int,
    level: str,
    message: str,
    details: Any | None,
    timestamp: datetime,
    key: str | None = None,
) -> dict[str, Any]:
    """Store one log line. Returns it as `newest_logs` does."""
    row = RunLogRow(
        run_id=run_id, attempt=attempt, level=level, message=message, key=key, details=details, timestamp=timestamp
    )
    session.add(row)
    return _log_line(row)


def history(
    session: Session, run_id: str, max_points: int, first_step: int | None = None, last_step: int | None = None
) -> list[dict[str, Any]]:
    """Rows of the contract's `history` in step order, `max_points` at most, minima and maxima kept."""
    query = _rows(run_id)
    if first_step is not None:
        query = query.where(TrainingMetricRow.step >= first_step)
    if last_step is not None:
        query = query.where(TrainingMetricRow.step <= last_step)
    rows = session.execute(query).all()
    kept = sample([(row.loss, row.val_loss, row.accuracy) for row in rows], max_points)
    return [_history_row(rows[index]) for index in kept]


def curves(
    session: Session, run_ids: list[str], metric: str, max_points: int
) -> tuple[list[int], list[list[float | None]]]:
    """Curves of several runs on one axis: the steps that any of them shows, and each run's values there.

    `metric` is a name of the wire. A run shows `max_points` at most, and None where nothing was measured.
    """
    column = getattr(TrainingMetricRow, _COLUMNS.get(metric, metric))
    measured: list[dict[int, float]] = []
    steps: set[int] = set()
    for run_id in run_ids:
        query = select(TrainingMetricRow.step, column).where(TrainingMetricRow.run_id == run_id, column.is_not(None))
        rows = session.execute(query.order_by(TrainingMetricRow.step)).all()
        steps.update(rows[index][0] for index in sample([(row[1],) for row in rows], max_points))
        measured.append({row[0]: row[1] for row in rows})
    shown = sorted(steps)
    return shown, [[values.get(step) for step in shown] for values in measured]


def every_step(session: Session, run_id: str) -> Iterator[dict[str, Any]]:
    """Every stored step in order, nothing sampled away."""
    for row in session.execute(_rows(run_id).execution_options(yield_per=2000)):
        yield _history_row(row)


def newest_logs(session: Session, run_id: str, limit: int = NEWEST_LOGS) -> list[dict[str, Any]]:
    """The newest log lines, oldest of them first; `key` names the sentence that `message` is in English."""
    query = select(RunLogRow).where(RunLogRow.run_id == run_id).order_by(RunLogRow.id.desc()).limit(limit)
    return [_log_line(row) for row in reversed(session.scalars(query).all())]


def forget(session: Session, run_id: str) -> None:
    """Delete all that was measured of a run."""
    session.execute(delete(TrainingMetricRow).where(TrainingMetricRow.run_id == run_id))
    session.execute(delete(RunLogRow).where(RunLogRow.run_id == run_id))


@cache
def _upsert(is_sqlite: bool, names: tuple[str, ...], is_odd: bool) -> Any:
    """The statement that stores points which measure `names`, some of them not finite where `is_odd`."""
    table = cast(Table, TrainingMetricRow.__table__)
    statement = (sqlite_insert if is_sqlite else postgresql_insert)(table)
    new = statement.excluded
    same = table.c.attempt == new.attempt
    changes: dict[str, Any] = {name: new[name] for name in ("epoch", "attempt", "timestamp", *names)}
    for name in (*TRAINING, *EVALUATION):
        if name not in names:
            changes[name] = case((same, table.c[name]), else_=None)
    if not is_odd:
        changes["non_finite"] = case((same, table.c.non_finite), else_=None)
    elif is_sqlite:
        merged = func.json_patch(func.coalesce(table.c.non_finite, "{}"), new.non_finite)
        changes["non_finite"] = case((same, merged), else_=new.non_finite)
    else:
        changes["non_finite"] = new.non_finite
    return statement.on_conflict_do_update(index_elements=["run_id", "step"], set_=changes)


def _log_line(row: RunLogRow) -> dict[str, Any]:
    return {
        "timestamp": rfc3339(row.timestamp),
        "level": row.level,
        "type": row.level,
        "message": row.message,
        "key": row.key,
        "details": row.details,
    }


def _rows(run_id: str) -> Any:
    m = TrainingMetricRow
    columns = (
        m.step,
        m.epoch,
        m.loss,
        m.val_loss,
        m.accuracy,
        m.throughput,
        m.learning_rate,
        m.non_finite,
        m.timestamp,
    )
    return select(*columns).where(m.run_id == run_id).order_by(m.step)


_WIRE_NAMES = {"val_loss": "valLoss", "learning_rate": "learningRate"}
_COLUMNS = {wire: column for column, wire in _WIRE_NAMES.items()}


def _history_row(row: Any) -> dict[str, Any]:
    value = {
        "step": row.step,
        "epoch": row.epoch,
        "loss": row.loss,
        "valLoss": row.val_loss,
        "accuracy": row.accuracy,
        "throughput": row.throughput,
        "learningRate": row.learning_rate,
        "timestamp": rfc3339(row.timestamp),
    }
    if row.non_finite:
        value["nonFinite"] = {_WIRE_NAMES.get(name, name): text for name, text in json.loads(row.non_finite).items()}
    return value
