"""What the server acknowledged of a run, kept beside its journals as `record.json`, so that the database is an index.

Ids, name, state, wish and place in the queue are nowhere else on disk. The record is written right after the commit
that changed one of them, before anybody is answered.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from kargah.ground.db import after_commit
from kargah.ground.events import EventLog
from kargah.ground.ids import rfc3339
from kargah.runs.models import AttemptRow, RunRow
from kargah.spec.layout import RunDir, read_json, write_json

log = logging.getLogger(__name__)

VERSION = 1
COMPLETE = ".runs-recorded"
"""Stands beside the folder of runs while every one of them has a record."""

Record = dict[str, Any]


class Ledger:
    """Tells of runs (the event log) and keeps their records (the folder of runs)."""

    def __init__(self, events: EventLog, runs: Path) -> None:
        self.events = events
        self._runs = runs
        self._late: dict[str, Record] = {}

    def run_dir(self, run_id: str) -> RunDir:
        """The directory of a run."""
        return RunDir(self._runs / run_id)

    def keep(self, session: Session, run: RunRow) -> None:
        """Write the record of `run` once the transaction of `session` is committed."""
        # However often a transaction changes a run, its record is written once.
        pending: dict[str, list[AttemptRow]] = session.info.setdefault("records", {})
        is_first = run.id not in pending
        pending[run.id] = attempts_of(session, run.id)
        if is_first:
            after_commit(session, lambda: self._write(run.id, record_of(run, pending[run.id])))

    def catch_up(self) -> None:
        """Write the records that a full disk refused before."""
        for run_id, record in list(self._late.items()):
            self._write(run_id, record)

    @property
    def is_complete(self) -> bool:
        """Whether every run is known to have its record, so that nobody has to look for those that have none."""
        return (self._runs.parent / COMPLETE).exists()

    def set_complete(self) -> None:
        """Every run has its record now. Raises `OSError`."""
        (self._runs.parent / COMPLETE).touch()

    def _write(self, run_id: str, record: Record) -> None:
        run_dir = self.run_dir(run_id)
        if not run_dir.root.is_dir():
            return
        try:
            write_json(run_dir.record, record)
        except OSError:
            # The commit stands, so its answer must; the disk is asked again until it takes the record.
            log.exception("the record of run %s could not be written", run_id)
            self._late[run_id] = record
            # Should this server die before, the next one has to look.
            (self._runs.parent / COMPLETE).unlink(missing_ok=True)
        else:
            self._late.pop(run_id, None)


def attempts_of(session: Session, run_id: str) -> list[AttemptRow]:
    """The attempts of a run, in order."""
    query = select(AttemptRow).where(AttemptRow.run_id == run_id)
    return list(session.scalars(query.order_by(AttemptRow.number)).all())


def record_of(run: RunRow, attempts: Sequence[AttemptRow]) -> Record:
    """What `record.json` says of a run. Times are RFC 3339."""
    return {
        "version": VERSION,
        "runId": run.id,
        "jobId": run.job_id,
        "name": run.name,
        "status": str(run.status),
        "wish": run.wish,
        "wishSeq": run.wish_seq,
        "attempt": run.attempt,
        "numLosses": run.num_losses,
        "place": run.place,
        "reservedBytes": run.reserved_bytes,
        "step": run.step,
        "error": run.error,
        "errorParams": run.error_params,
        "origin": run.origin,
        "createdAt": rfc3339(run.created_at),
        "queuedAt": rfc3339(run.queued_at),
        "startedAt": rfc3339(run.started_at),
        "finishedAt": rfc3339(run.finished_at),
        "attempts": [
            {
                "number": attempt.number,
                "state": str(attempt.state),
                "host": attempt.host,
                "gpu": attempt.gpu,
                "error": attempt.error,
                "startedAt": rfc3339(attempt.started_at),
                "endedAt": rfc3339(attempt.ended_at),
            }
            for attempt in attempts
        ],
    }


def read_record(run_dir: RunDir) -> Record | None:
    """The record of a run; None where no server ever had it, or where it cannot be read."""
    try:
        value = read_json(run_dir.record)
    except (json.JSONDecodeError, UnicodeDecodeError):
        log.warning("the record of run %s is damaged", run_dir.root.name)
        return None
    return value if isinstance(value, dict) and value.get("version") == VERSION else None
