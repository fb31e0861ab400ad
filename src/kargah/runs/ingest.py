"""From the journal into the database: rows, latest values, checkpoints, events and the offset, in one transaction.

That transaction is what makes every logged step stored exactly once: either all that a part of the journal says is in
the database together with the offset behind it, or none of it is.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.ground.errors import InUse
from kargah.ground.ids import new_id, now, parse_rfc3339
from kargah.metrics import store
from kargah.metrics.store import Point
from kargah.runs.ledger import Ledger
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.states import ENDED, AttemptState, RunState, transition
from kargah.spec.journal import FAILED_LINE, JournalPart, Record
from kargah.text.messages import translate


class RecordDamaged(Exception):
    """A record of a journal is not what it must be."""


class Ingest:
    """Takes parts of journals in."""

    def __init__(self, ledger: Ledger, registry: Registry) -> None:
        self._ledger = ledger
        self._events = ledger.events
        self._registry = registry

    def take(self, session: Session, run: RunRow, attempt: AttemptRow, part: JournalPart) -> None:
        """Store what `part` says and the offset behind it, within the caller's write transaction.

        Raises `RecordDamaged`; what came before that record is not stored either.
        """
        for record in part.records:
            try:
                self._take_one(session, run, attempt, record)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise RecordDamaged(f"{record!r:.200}") from error
        attempt.journal_offset = part.offset
        session.flush()

    def warn(self, session: Session, run: RunRow, attempt: AttemptRow, key: str, /, **details: Any) -> None:
        """The server itself has to say something about a run: the sentence `log.<key>`."""
        message = translate(f"log.{key}", "en", **details)
        self._write_line(session, run, attempt, "warning", message, key, details, now())

    def _take_one(self, session: Session, run: RunRow, attempt: AttemptRow, record: Record) -> None:
        kind = record["type"]
        if kind == "started":
            self._started(session, run, attempt, record)
        elif kind == "metric":
            self._metric(session, run, attempt, record)
        elif kind == "evaluation":
            self._evaluation(session, run, attempt, record)
        elif kind == "log":
            self._log(session, run, attempt, record)
        elif kind == "checkpoint":
            self._checkpoint(session, run, attempt, record)
        elif kind == "checkpointRemoved":
            self._checkpoint_removed(session, run, record)

    def _started(self, session: Session, run: RunRow, attempt: AttemptRow, record: Record) -> None:
        attempt.state = AttemptState.RUNNING
        attempt.pid = record["pid"]
        attempt.start_step = record["startStep"]
        run.total_steps = record["totalSteps"]
        run.started_at = run.started_at or parse_rfc3339(record["at"])
        session.flush()
        if run.status == RunState.PREPARING:
            transition(session, self._ledger, run, RunState.RUNNING)

    def _metric(self, session: Session, run: RunRow, attempt: AttemptRow, record: Record) -> None:
        values = {"loss": record["loss"], "throughput": record["throughput"], "learning_rate": record["learningRate"]}
        point = _point(record, values)
        store.write_points(session, run.id, attempt.number, [point])
        run.step, run.epoch = point.step, point.epoch
        run.train_loss, run.throughput, run.learning_rate = (
            values["loss"],
            values["throughput"],
            values["learning_rate"],
        )
        run.non_finite = {**(run.non_finite or {}), **_latest_odd(record, "loss")} or None
        self._tell(session, run, "metric", record)

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
        checkpoint_id = row.id if row is not None else new_id()
        facts: dict[str, Any] = {
            "step": record["step"],
            "epoch": record["epoch"],
            "metrics": record["metrics"],
            "best": record["best"],
            "last": True,
            "attempt": attempt.number,
            "tasks": [run.task],
            "baseModel": run.base_model,
        }
        for other in self._registry.listed(session, ["checkpoint"], run.id):
            lost = {"last": False} | ({"best": False} if record["best"] else {})
            other.facts = {**other.facts, **lost}
        self._registry.put(
            session,
            "checkpoint",
            checkpoint_id,
            name=f"{run.name} · {record['step']}",
            source="training",
            status="ready",
            size_bytes=record["sizeBytes"],
            path=path,
            run_id=run.id,
            facts=facts,
        )
        run.last_checkpoint = checkpoint_id
        if record["best"]:
            run.best_checkpoint = checkpoint_id
        if record["step"] > attempt.start_step:
            attempt.advanced = True
            run.num_losses = 0
        self._tell(session, run, "checkpoint", {**record, "checkpointId": checkpoint_id})

    def _checkpoint_removed(self, session: Session, run: RunRow, record: Record) -> None:
        row = _checkpoint_at(session, run.id, f"runs/{run.id}/checkpoints/{record['name']}")
        if row is not None:
            session.delete(row)
            self._events.append(session, "assets", "removed", {"kind": "checkpoint", "id": row.id})

    def _tell(self, session: Session, run: RunRow, type: str, record: Record) -> None:
        data = {name: value for name, value in record.items() if name not in ("seq", "type", "at")}
        self._events.append(session, f"runs:{run.id}", type, {"runId": run.id, "timestamp": record["at"], **data})


def forget_checkpoint(session: Session, row: AssetRow) -> None:
    """A checkpoint is being deleted: its run no longer points to it."""
    for column in ("best_checkpoint", "last_checkpoint"):
        session.execute(update(RunRow).where(getattr(RunRow, column) == row.id).values({column: None}))


def delete_checkpoint(session: Session, row: AssetRow) -> None:
    """A person deletes a checkpoint. Raises `InUse` for the one that an unfinished run goes on from."""
    run = session.get(RunRow, row.run_id)
    if run is not None and run.last_checkpoint == row.id and RunState(run.status) not in ENDED:
        raise InUse(id=row.id, details={"holders": [f"run:{run.id}"]})
    forget_checkpoint(session, row)


def mend_checkpoints(session: Session, registry: Registry, run: RunRow, folder: Path) -> None:
    """Forget checkpoints of a run whose folder is gone (a program died between deleting and telling)."""
    for row in registry.listed(session, ["checkpoint"], run.id):
        if row.path and not (folder / "checkpoints" / Path(row.path).name).is_dir():
            forget_checkpoint(session, row)
            session.delete(row)


def _checkpoint_at(session: Session, run_id: str, path: str) -> AssetRow | None:
    return session.query(AssetRow).filter_by(kind="checkpoint", run_id=run_id, path=path).one_or_none()


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
