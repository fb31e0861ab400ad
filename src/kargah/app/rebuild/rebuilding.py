"""Making the database again: records of assets, transfers and requests first, then the runs, then the swap."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from kargah.app.rebuild.databases import (
    UNREADABLE,
    file_of,
    former_copy,
    new_database,
    number_events_from,
    remove,
    swap,
)
from kargah.app.rebuild.found import found_assets
from kargah.assets.catalog import Catalog, load_catalog
from kargah.assets.models import ApprovalRequestRow, AssetRow, TransferRow
from kargah.assets.records import Records, Unreadable
from kargah.assets.registry import Registry
from kargah.assets.transfers import ENDED as TRANSFER_ENDED
from kargah.ground.db import Database
from kargah.ground.errors import KargahError
from kargah.ground.events import EventLog, EventRow
from kargah.ground.home import Home
from kargah.ground.settings import Settings
from kargah.metrics.models import RunLogRow, TrainingMetricRow
from kargah.runs.adoption import own_id, read_spec, tell_state
from kargah.runs.known import known_by_files, known_by_record
from kargah.runs.ledger import read_record
from kargah.runs.missing_records import write_missing_records
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.restoring import Restorer, SilentEvents
from kargah.spec.layout import RunDir
from kargah.spec.lock import holder_pid

log = logging.getLogger(__name__)

EVENTS_SINCE_SECONDS = 1_600_000_000
"""Events are numbered by the seconds since then, at least: more than there were, up to one a second on average."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that could not be read: `reason` is the key of a sentence (`rebuild.reason.<reason>`)."""

    path: Path
    reason: str
    problem: str = ""


@dataclass(slots=True)
class Rebuilt:
    """What the new database holds, by the names of its parts, and what it lacks. `former` is where the old one went."""

    counts: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    former: Path | None = None
    former_was_read: bool = False


def rebuild(settings: Settings) -> Rebuilt:
    """Make the database again. Raises `HomeInUse` while a server works on the directory, `CannotStart`, `OSError`."""
    home = Home(settings.home)
    home.prepare()
    home.claim()
    try:
        catalog = load_catalog(settings.catalog)
        url = settings.effective_database_url
        file = file_of(url)
        rebuilt = Rebuilt()
        last_event = _ask_former(file, home, rebuilt) if file is not None else 0
        database = new_database(url)
        try:
            number_events_from(database, max(last_event, int(time.time()) - EVENTS_SINCE_SECONDS))
            _fill(database, home, catalog, rebuilt)
            rebuilt.counts = _counts(database)
            if file is not None:
                rebuilt.former = swap(database, file, home.backups)
        finally:
            database.close()
            if file is not None and database.file is not None:
                remove(database.file)
        return rebuilt
    finally:
        home.release()


def _ask_former(file: Path, home: Home, rebuilt: Rebuilt) -> int:
    """Keep what only the former database knows, if it can be read. Returns the id of its last event."""
    if not file.exists():
        return 0
    try:
        with former_copy(file, home.root) as former:
            Records(home.root).catch_up(former)
            try:
                write_missing_records(former, home.runs)
            except OSError as error:
                log.warning("what only the former database knows could not be written: %s", error)
            rebuilt.former_was_read = True
            with former.read() as session:
                return session.scalar(select(func.max(EventRow.id))) or 0
    except UNREADABLE as error:
        log.warning("the former database cannot be read: %s", error)
        return 0


def _fill(database: Database, home: Home, catalog: Catalog, rebuilt: Rebuilt) -> None:
    records = Records(home.root)
    with database.write() as session:
        transfers = _readable(records.transfers(), rebuilt)
        ended = {(row.kind, row.asset_id) for row in transfers if row.state in list(TRANSFER_ENDED)}
        assets = [row for row in _readable(records.assets(), rebuilt) if _is_there(row, home, ended, rebuilt)]
        known = {(row.kind, row.id) for row in assets}
        _insert(session, [*assets, *found_assets(home, catalog, known)], rebuilt)
        _insert(session, transfers, rebuilt)
        _insert(session, _readable(records.requests(), rebuilt), rebuilt)
    restorer = Restorer(Registry(database, SilentEvents(database), home, catalog))
    for folder in sorted(home.runs.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            _restore(database, restorer, RunDir(folder), rebuilt)


def _readable(rows: Iterable[Any], rebuilt: Rebuilt) -> list[Any]:
    readable = []
    for row in rows:
        if isinstance(row, Unreadable):
            rebuilt.left_out.append(LeftOut(row.path, "recordDamaged", row.problem))
        else:
            readable.append(row)
    return readable


def _is_there(row: AssetRow, home: Home, ended: set[tuple[str, str]], rebuilt: Rebuilt) -> bool:
    if row.status == "downloading" and (row.kind, row.id) in ended:
        # The server died between two records; if it arrived, the store has it.
        return False
    if row.status != "ready" or (row.path is not None and (home.root / row.path).is_dir()):
        return True
    if row.source != "builtin":
        rebuilt.left_out.append(LeftOut(home.root / (row.path or row.id), "noFolder"))
    return False


def _insert(session: Session, rows: Iterable[Any], rebuilt: Rebuilt) -> None:
    for row in rows:
        try:
            with session.begin_nested():
                session.add(row)
        except SQLAlchemyError as error:
            problem = str(getattr(error, "orig", error))
            rebuilt.left_out.append(LeftOut(Path(f"{type(row).__tablename__}/{row.id}"), "notTaken", problem))


def _restore(database: Database, restorer: Restorer, run_dir: RunDir, rebuilt: Rebuilt) -> None:
    def leave_out(reason: str, problem: str = "") -> None:
        rebuilt.left_out.append(LeftOut(run_dir.root, reason, problem))

    try:
        spec = read_spec(run_dir)
    except (KargahError, OSError) as error:
        leave_out(
            "specDamaged" if run_dir.spec.exists() else "noSpec", str(getattr(error, "params", {}).get("field", ""))
        )
        return
    if spec.run_id != run_dir.root.name:
        leave_out("notAdopted" if own_id(spec) != run_dir.root.name else "specDamaged", "runId")
        return
    known = known_by_files(run_dir, spec, is_alive=holder_pid(run_dir.lock) is not None)
    record = read_record(run_dir)
    try:
        if record is not None:
            known = known_by_record(record)
        elif run_dir.record.exists():
            leave_out("recordDamaged")
    except (KeyError, TypeError, ValueError) as error:
        leave_out("recordDamaged", f"{type(error).__name__}: {error}")
    try:
        with database.write() as session:
            restored = restorer.restore(session, spec, known)
            # Who followed the run in the former database's events finds that something came behind them.
            tell_state(session, EventLog(database), restored.run)
        rebuilt.left_out += [LeftOut(journal, "journalDamaged") for journal in restored.damaged]
    except (OSError, SQLAlchemyError, ValueError, KeyError, TypeError) as error:
        log.exception("run %s could not be restored", run_dir.root.name)
        leave_out("notTaken", f"{type(error).__name__}: {error}")


def _counts(database: Database) -> dict[str, int]:
    with database.read() as session:

        def count(table: Any, *where: Any) -> int:
            return session.scalar(select(func.count()).select_from(table).where(*where)) or 0

        return {
            "runs": count(RunRow),
            "attempts": count(AttemptRow),
            "steps": count(TrainingMetricRow),
            "logLines": count(RunLogRow),
            "checkpoints": count(AssetRow, AssetRow.kind == "checkpoint"),
            "models": count(AssetRow, AssetRow.kind == "model"),
            "datasets": count(AssetRow, AssetRow.kind == "dataset"),
            "downloads": count(TransferRow, TransferRow.state.not_in(list(TRANSFER_ENDED))),
            "requests": count(ApprovalRequestRow),
        }
