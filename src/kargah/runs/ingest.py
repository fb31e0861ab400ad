"""From the journal into the database: rows, latest values, checkpoints, events and the offset, in one transaction.

That transaction is what makes every logged step stored exactly once: either all that a part of the journal says is in
the database together with the offset behind it, or none of it is.
"""

from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.ground.ids import now, parse_rfc3339
from kargah.metrics import store
from kargah.metrics.store import Point
from kargah.runs.checkpoint_ids import checkpoint_id
from kargah.runs.ledger import Ledger
from kargah.runs.memory import HEADROOM
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.server_lines import ServerLines
from kargah.runs.states import AttemptState, RunState, transition
from kargah.spec.journal import FAILED_LINE, JournalPart, Record
from kargah.text.messages import translate

_MEASURED = {"loss": "loss", "throughput": "throughput", "learning_rate": "learningRate"}
"""What a `metric` record measures: the column and its name in the record."""


class RecordDamaged(Exception):
    """A record of a journal is not what it must be."""


class Ingest:
    """Takes parts of journals in."""

    def __init__(self, ledger: Ledger, registry: Registry) -> None:
        self._ledger = ledger
        self._events = ledger.events
        self._registry = registry
        self._lines = ServerLines(ledger)

    def take(self, session: Session, run: RunRow, attempt: AttemptRow, part: JournalPart) -> None:
        """Store what `part` says and the offset behind it, within the caller's write transaction.

        Raises `RecordDamaged`; what came before that record is not stored either.
        """
        record: Record | None = None
        try:
            # Steps come by the hundred: those between two other records are stored with one statement.
            for is_metric, records in groupby(part.records, key=lambda record: record["type"] == "metric"):
                if is_metric:
                    steps = list(records)
                    record = steps[0]
                    self._metrics(session, run, attempt, steps)
                    continue
                for record in records:
                    self._take_one(session, run, attempt, record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordDamaged(f"{record!r:.200}") from error
        attempt.journal_offset = part.offset
        session.flush()

    def tell(self, session: Session, run: RunRow, attempt: AttemptRow, level: str, key: str, /, **details: Any) -> None:
        """The server itself has to say something about a run: the sentence `log.<key>`."""
        message, at = translate(f"log.{key}", "en", **details), now()
        self._write_line(session, run, attempt, level, message, key, details, at)
        self._lines.keep(session, attempt, level, message, key, details, at)

    def _take_one(self, session: Session, run: RunRow, attempt: AttemptRow, record: Record) -> None:
        kind = record["type"]
        if kind == "started":
            self._started(session, run, attempt, record)
        elif kind == "evaluation":
            self._evaluation(session, run, attempt, record)
        elif kind == "log":
            self._log(session, run, attempt, record)
        elif kind == "checkpoint":
            self._checkpoint(session, run, attempt, record)
        elif kind == "checkpointRemoved":
            self._checkpoint_removed(session, run, record)
        elif kind == "finished":
            self._finished(run, record)

    def _started(self, session: Session, run: RunRow, attempt: AttemptRow, record: Record) -> None:
        attempt.state = AttemptState.RUNNING
        attempt.pid = record["pid"]
        attempt.start_step = record["startStep"]
        run.total_steps = record["totalSteps"]
        run.started_at = run.started_at or parse_rfc3339(record["at"])
        session.flush()
        if run.status == RunState.PREPARING:
            transition(session, self._ledger, run, RunState.RUNNING)

    def _metrics(self, session: Session, run: RunRow, attempt: AttemptRow, records: list[Record]) -> None:
        points = [_point(record, {name: record[wire] for name, wire in _MEASURED.items()}) for record in records]
        store.write_points(session, run.id, attempt.number, points)
        last = points[-1]
        run.step, run.epoch = last.step, last.epoch
        run.train_loss, run.throughput, run.learning_rate = (last.values[name] for name in _MEASURED)
        odd = dict(run.non_finite or {})
        for record in records:
            odd.update(_latest_odd(record, "loss"))
        run.non_finite = odd or None
        facts = [("metric", _told(run, record)) for record in records]
        self._events.append_all(session, f"runs:{run.id}", facts)

    def _evaluation(self, session: Session, run: RunRow, attempt: AttemptRow, record: Record) -> None:
        values = {"val_loss": record["valLoss"], "accuracy": record["accuracy"]}
        point = _point(record, values)
        store.write_points(session, run.id, attempt.number, [point])
        run.step, run.epoch = max(run.step, point.step), point.epoch
        run.val_loss, run.accuracy = values["val_loss"], values["accuracy"]
        run.measured = record.get("metrics") or None
        self._tell(session, run, "evaluation", record)

    def _log(self, session: Session, run: RunRow, attempt: AttemptRow, record: Record) -> None:
        key, at = record.get("key"), parse_rfc3339(record["at"])
        details = record.get("details") if key is None else _details(record)
        if key == FAILED_LINE:
            details = {"id": run.base_model, **_details(record)}
        self._write_line(session, run, attempt, record["level"], record["message"], key, details, at)

    def _write_line(
        self,
        session: Session,
        run: RunRow,
        attempt: AttemptRow,
        level: str,
        message: str,
        key: str | None,
        details: Any | None,
        at: datetime,
    ) -> None:
        line = store.write_log(session, run.id, attempt.number, level, message, details, at, key)
        self._events.append(session, f"runs:{run.id}", "log", {"runId": run.id, **line})

    def _checkpoint(self, session: Session, run: RunRow, attempt: AttemptRow, record: Record) -> None:
        path = f"runs/{run.id}/checkpoints/{record['name']}"
        row = _checkpoint_at(session, run.id, path)
        asset_id = row.id if row is not None else checkpoint_id(run.id, record["name"])
        written_at = parse_rfc3339(record["at"])
        facts: dict[str, Any] = {
            "step": record["step"],
            "epoch": record["epoch"],
            "metrics": record["metrics"],
            "best": record["best"],
            "last": True,
            "attempt": attempt.number,
            "tasks": [run.task],
            "baseModel": run.base_model,
            # Written again by a later attempt, it is still the one that somebody pinned.
            **({"pinned": True} if row is not None and row.facts.get("pinned") else {}),
        }
        for other in self._registry.listed(session, ["checkpoint"], run.id):
            lost = {"last": False} | ({"best": False} if record["best"] else {})
            other.facts = {**other.facts, **lost}
        self._registry.put(
            session,
            "checkpoint",
            asset_id,
            name=f"{run.name} · {record['step']}",
            source="training",
            status="ready",
            size_bytes=record["sizeBytes"],
            path=path,
            run_id=run.id,
            facts=facts,
            created_at=written_at,
            downloaded_at=written_at,
        )
        run.last_checkpoint = asset_id
        if record["best"]:
            run.best_checkpoint = asset_id
        if record["step"] > attempt.start_step:
            attempt.advanced = True
            run.num_losses = 0
        self._tell(session, run, "checkpoint", {**record, "checkpointId": asset_id})

    def _checkpoint_removed(self, session: Session, run: RunRow, record: Record) -> None:
        row = _checkpoint_at(session, run.id, f"runs/{run.id}/checkpoints/{record['name']}")
        if row is not None:
            forget_checkpoint(session, row)
            session.delete(row)
            self._events.append(session, "assets", "removed", {"kind": "checkpoint", "id": row.id})

    @staticmethod
    def _finished(run: RunRow, record: Record) -> None:
        # What it took is known now: that much is set aside for the next attempt.
        peak = (record.get("details") or {}).get("peakMemoryBytes")
        if isinstance(peak, int) and peak > 0:
            run.reserved_bytes = int(HEADROOM * peak)

    def _tell(self, session: Session, run: RunRow, type: str, record: Record) -> None:
        self._events.append(session, f"runs:{run.id}", type, _told(run, record))


def forget_checkpoint(session: Session, row: AssetRow) -> None:
    """A checkpoint is being deleted: its run no longer points to it."""
    for column in ("best_checkpoint", "last_checkpoint"):
        session.execute(update(RunRow).where(getattr(RunRow, column) == row.id).values({column: None}))


def mend_checkpoints(session: Session, registry: Registry, run: RunRow, folder: Path) -> None:
    """Forget checkpoints of a run whose folder is gone (a program died between deleting and telling)."""
    for row in registry.listed(session, ["checkpoint"], run.id):
        if row.path and not (folder / "checkpoints" / Path(row.path).name).is_dir():
            forget_checkpoint(session, row)
            session.delete(row)
    left = registry.listed(session, ["checkpoint"], run.id)
    if run.last_checkpoint is None and left:
        newest = max(left, key=lambda row: row.facts["step"])
        newest.facts = {**newest.facts, "last": True}
        run.last_checkpoint = newest.id


def _checkpoint_at(session: Session, run_id: str, path: str) -> AssetRow | None:
    return session.query(AssetRow).filter_by(kind="checkpoint", run_id=run_id, path=path).one_or_none()


def _told(run: RunRow, record: Record) -> dict[str, Any]:
    data = {name: value for name, value in record.items() if name not in ("seq", "type", "at")}
    return {"runId": run.id, "timestamp": record["at"], **data}


def _point(record: Record, values: dict[str, float | None]) -> Point:
    odd = {
        {"valLoss": "val_loss", "learningRate": "learning_rate"}.get(name, name): text
        for name, text in (record.get("nonFinite") or {}).items()
    }
    return Point(
        step=record["step"],
        epoch=record["epoch"],
        values=values,
        non_finite={name: text for name, text in odd.items() if name in values},
        timestamp=parse_rfc3339(record["at"]),
    )


def _details(record: Record) -> dict[str, Any]:
    """What fills a log line; a value that was NaN or infinite is null and named in `nonFinite`, as everywhere."""
    odd = {name.removeprefix("details."): text for name, text in (record.get("nonFinite") or {}).items()}
    return {**record["details"], **({"nonFinite": odd} if odd else {})}


def _latest_odd(record: Record, name: str) -> dict[str, str]:
    odd = record.get("nonFinite") or {}
    return {"trainLoss": odd[name]} if name in odd else {}
