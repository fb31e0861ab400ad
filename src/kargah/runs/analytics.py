"""Runs as they are read: the flat row, the list, status with curves and log, comparison and export."""

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import ColumnElement, String, and_, cast, func, or_, select
from sqlalchemy.orm import Session

from kargah.ground.ids import rfc3339
from kargah.ground.web.paging import decode_place, encode_cursor
from kargah.metrics import store
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.queue import Capacity, Waiting, waiting_runs
from kargah.runs.states import ACTIVE, RunState
from kargah.spec.journal import FAILED_LINE
from kargah.text.fold import fold
from kargah.text.languages import Language
from kargah.text.messages import catalog, has, placeholders, translate

EXPORT_COLUMNS = ("step", "epoch", "loss", "valLoss", "accuracy", "throughput", "learningRate", "timestamp")


def flat_row(run: RunRow, language: Language) -> dict[str, Any]:
    """The row of a run in `GET /api/analysis/training/jobs`."""
    row: dict[str, Any] = {
        "id": run.id,
        "runId": run.id,
        "jobId": run.job_id,
        "name": run.name,
        "status": run.status,
        "baseModel": run.base_model,
        "datasets": run.datasets,
        "teacherModel": run.teacher_model,
        "task": run.task,
        "epoch": run.epoch,
        "step": run.step,
        "totalSteps": run.total_steps,
        "trainLoss": run.train_loss,
        "valLoss": run.val_loss,
        "accuracy": run.accuracy,
        "throughput": run.throughput,
        "bestCheckpoint": run.best_checkpoint,
        "lastCheckpoint": run.last_checkpoint,
        "createdAt": rfc3339(run.created_at),
        "startedAt": rfc3339(run.started_at),
        "finishedAt": rfc3339(run.finished_at),
        "progress": _progress(run),
    }
    if run.silent_since:
        row["silentSince"] = rfc3339(run.silent_since)
    if run.origin:
        row["origin"] = run.origin
    if run.non_finite:
        row["nonFinite"] = run.non_finite
    if run.error:
        row["error"] = run.error
        row["message"] = _why(run.error, {"id": run.base_model, "step": run.step, **(run.error_params or {})}, language)
    return row


def list_runs(
    session: Session,
    language: Language,
    *,
    limit: int,
    cursor: str | None,
    status: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    q: str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows newest first and the page they are. `model` matches base or teacher; `q` folds Persian spellings."""
    matches: list[ColumnElement[bool]] = []
    if status is not None:
        matches.append(RunRow.status.in_(status.split(",")))
    if model is not None:
        matches.append(or_(RunRow.base_model == model, RunRow.teacher_model == model))
    if dataset is not None:
        matches.append(cast(RunRow.datasets, String).contains(orjson.dumps(dataset).decode(), autoescape=True))
    if q:
        names = session.execute(select(RunRow.id, RunRow.name, RunRow.base_model).where(*matches)).all()
        found = [row.id for row in names if fold(q) in fold(f"{row.name} {row.base_model} {row.id}")]
        matches.append(RunRow.id.in_(found))
    total = session.scalar(select(func.count()).select_from(RunRow).where(*matches)) or 0
    if cursor:
        moment, last_id = decode_place(cursor)
        matches.append(or_(RunRow.created_at < moment, and_(RunRow.created_at == moment, RunRow.id < last_id)))
    query = select(RunRow).where(*matches).order_by(RunRow.created_at.desc(), RunRow.id.desc()).limit(limit + 1)
    rows = session.scalars(query).all()
    more = len(rows) > limit
    shown = rows[:limit]
    following = encode_cursor(shown[-1].created_at.isoformat(), shown[-1].id) if more else None
    return [flat_row(run, language) for run in shown], {"next": following, "total": total}


def status_of(
    session: Session,
    run: RunRow,
    language: Language,
    max_points: int,
    first: int | None = None,
    last: int | None = None,
) -> dict[str, Any]:
    """`data` of `GET /api/analysis/training/status/{id}`."""
    return {
        **flat_row(run, language),
        "metrics": {
            "epoch": run.epoch,
            "step": run.step,
            "trainLoss": run.train_loss,
            "valLoss": run.val_loss,
            "accuracy": run.accuracy,
            "throughput": run.throughput,
            "learningRate": run.learning_rate,
            **(run.measured or {}),
        },
        "history": store.history(session, run.id, max_points, first, last),
        "logs": [log_line(line, language) for line in store.newest_logs(session, run.id)],
        "config": run.spec["config"],
    }


def training_status(
    session: Session, run: RunRow, language: Language, max_points: int, capacity: Capacity
) -> dict[str, Any]:
    """`data` of `GET /api/training/status/{id}`: the same with the attempt and the place in the queue."""
    attempt = session.get(AttemptRow, (run.id, run.attempt)) if run.attempt else None
    shown = None
    if attempt is not None:
        living = attempt.ended_at is None
        shown = {
            "number": attempt.number,
            "pid": attempt.pid if living else None,
            "host": attempt.host,
            "startedAt": rfc3339(attempt.started_at),
        }
    queue = None
    if run.status == RunState.QUEUED:
        waiting = next((one for one in waiting_runs(session, capacity) if one.run_id == run.id), None)
        queue = waiting and queue_place(waiting, language)
    return {**status_of(session, run, language, max_points), "attempt": shown, "queue": queue}


def queue_place(waiting: Waiting, language: Language) -> dict[str, Any]:
    """Where a run stands in the queue, what it waits for, and that in words."""
    bytes_of = {"neededBytes": waiting.needed_bytes, "freeBytes": waiting.free_bytes}
    known = {name: value for name, value in bytes_of.items() if value is not None}
    message = translate(f"waits.{waiting.waits_for}", language, position=waiting.position, **known)
    return {"position": waiting.position, "waitsFor": waiting.waits_for.value, "message": message, **known}


def whole_queue(session: Session, language: Language, capacity: Capacity) -> dict[str, Any]:
    """`data` of `GET /api/training/queue`."""
    under_way = session.scalars(select(RunRow).where(RunRow.status.in_(list(ACTIVE)))).all()
    waiting = waiting_runs(session, capacity)
    rows = {run.id: run for run in session.scalars(select(RunRow).where(RunRow.status == RunState.QUEUED)).all()}
    shown = []
    for one in waiting:
        run = rows[one.run_id]
        names = {"runId": run.id, "jobId": run.job_id, "name": run.name, "baseModel": run.base_model}
        shown.append({**names, "reservedBytes": run.reserved_bytes, **queue_place(one, language)})
    return {
        "slots": capacity.slots,
        "gpus": len(capacity.gpus),
        "memoryBytes": capacity.memory_bytes,
        "reservedBytes": sum(run.reserved_bytes or 0 for run in under_way),
        "running": [run.id for run in under_way],
        "waiting": shown,
    }


def log_line(line: dict[str, Any], language: Language) -> dict[str, Any]:
    """A stored log line, or an event that tells one, with its message in `language` and without its key."""
    shown = {name: value for name, value in line.items() if name != "key"}
    if line.get("key") is not None:
        params = {**line["details"], **line["details"].get("nonFinite", {})}
        # Another version of the program may know other sentences or fill them otherwise: then its own words stand.
        with suppress(KeyError):
            if line["key"] == FAILED_LINE:
                shown["message"] = _why(params["error"], params, language)
            else:
                shown["message"] = translate(f"log.{line['key']}", language, **params)
    return shown


def compare(session: Session, runs: list[RunRow], metric: str, max_points: int) -> dict[str, Any]:
    """Curves of several runs on one axis: every step that any of them shows, null where a run has no value."""
    steps, curves = store.curves(session, [run.id for run in runs], metric, max_points)
    named = [{"runId": run.id, "name": run.name, "values": values} for run, values in zip(runs, curves, strict=True)]
    return {"metric": metric, "steps": steps, "runs": named}


def export_csv(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """Every step as CSV (RFC 4180), with a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*EXPORT_COLUMNS, "nonFinite"])
    for row in rows:
        odd = orjson.dumps(row["nonFinite"]).decode() if row.get("nonFinite") else ""
        writer.writerow(["" if row[name] is None else row[name] for name in EXPORT_COLUMNS] + [odd])
        if buffer.tell() > 65_536:
            yield _taken(buffer)
    yield _taken(buffer)


def export_json(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """Every step as one JSON array."""
    yield b"["
    for number, row in enumerate(rows):
        yield (b",\n" if number else b"\n") + orjson.dumps(row)
    yield b"\n]\n"


def export_parquet(rows: Iterator[dict[str, Any]]) -> bytes:
    """Every step as a Parquet file."""
    listed = list(rows)
    number, text = pa.float64(), pa.string()
    types = dict.fromkeys(EXPORT_COLUMNS, number) | {"step": pa.int64(), "timestamp": text}
    columns = {name: pa.array([row[name] for row in listed], type=types[name]) for name in EXPORT_COLUMNS}
    odd = [orjson.dumps(row["nonFinite"]).decode() if row.get("nonFinite") else None for row in listed]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({**columns, "nonFinite": pa.array(odd, type=text)}), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _why(code: str, params: dict[str, Any], language: Language) -> str:
    # Where a run's own sentence differs from that of a request with the same code, it stands under `run.`.
    key = f"run.{code}" if has(f"run.{code}", language) else f"error.{code}"
    # What a program did not say is shown as a dash, not as a crash.
    unsaid = dict.fromkeys(placeholders(catalog(language)[key]), "-")
    return translate(key, language, **{**unsaid, **params})


def _progress(run: RunRow) -> int:
    if run.status == RunState.COMPLETED:
        return 100
    if not run.total_steps:
        return 0
    return min(99, run.step * 100 // run.total_steps)


def _taken(buffer: io.StringIO) -> bytes:
    data = buffer.getvalue().encode("utf-8")
    buffer.seek(0)
    buffer.truncate()
    return data
