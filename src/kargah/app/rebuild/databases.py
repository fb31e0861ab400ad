"""The former database, the new one beside it, and the moment in which they change places."""

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import make_url, text
from sqlalchemy.exc import SQLAlchemyError

from kargah.app.rebuild.errors import DatabaseNotEmpty
from kargah.ground.db import Database
from kargah.ground.errors import CannotStart
from kargah.ground.ids import now
from kargah.ground.migrate import current_revision, migrate
from kargah.spec.layout import fsync_folder

log = logging.getLogger(__name__)

BESIDE = ("-wal", "-shm")
"""What SQLite keeps beside a database's file."""
UNREADABLE = (sqlite3.Error, SQLAlchemyError, CannotStart, OSError, ValueError, TypeError, KeyError)


def file_of(url: str) -> Path | None:
    """The file of a database of SQLite; None for one that a server of its own keeps."""
    named = make_url(url)
    return Path(named.database) if named.drivername.startswith("sqlite") and named.database else None


@contextmanager
def former_copy(file: Path, home: Path) -> Iterator[Database]:
    """A copy of the former database at the present schema; the former itself is only read.

    Raises one of `UNREADABLE`.
    """
    with TemporaryDirectory(prefix=".former-", dir=home) as folder:
        place = Path(folder) / "kargah.db"
        with (
            contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as old,
            contextlib.closing(sqlite3.connect(place)) as copy,
        ):
            old.backup(copy)
        database = Database(f"sqlite:///{place}")
        try:
            migrate(database, Path(folder))
            yield database
        finally:
            database.close()


def new_database(url: str) -> Database:
    """An empty database at the present schema: for SQLite beside the file, else the one of `url`.

    Raises `DatabaseNotEmpty`.
    """
    file = file_of(url)
    if file is None:
        database = Database(url)
        if current_revision(database) is not None:
            database.close()
            raise DatabaseNotEmpty()
    else:
        place = _beside(file)
        remove(place)
        database = Database(f"sqlite:///{place}")
    migrate(database, Path(os.devnull))
    return database


def swap(database: Database, file: Path, backups: Path) -> Path | None:
    """Close the new database and put it in the place of the former one, which goes to `backups`. Returns where.

    At every moment there is a whole database in the place or in `backups`. Raises `OSError`.
    """
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
    database.close()
    new = _beside(file)
    with open(new, "rb") as handle:
        os.fsync(handle.fileno())
    kept = None
    if file.exists():
        kept = backups / f"{file.stem}-before-rebuild-{now():%Y%m%dT%H%M%SZ}.db"
        for suffix in ("", *BESIDE):
            if Path(f"{file}{suffix}").exists():
                _link(Path(f"{file}{suffix}"), Path(f"{kept}{suffix}"))
        fsync_folder(backups)
    for suffix in BESIDE:
        # What it says belongs to the former file, and would be taken for the new one's.
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    os.replace(new, file)
    fsync_folder(file.parent)
    remove(new)
    return kept


def remove(file: Path) -> None:
    """Delete a database's files, those that are there."""
    for suffix in ("", *BESIDE):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


def number_events_from(database: Database, last_id: int) -> None:
    """Let the events of a new database begin behind `last_id`, which no reader of the former one has seen."""
    with database.write() as session:
        if database.is_sqlite:
            session.execute(text("DELETE FROM sqlite_sequence WHERE name = 'events'"))
            session.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', :id)"), {"id": last_id})
        else:
            session.execute(text("SELECT setval(pg_get_serial_sequence('events', 'id'), :id)"), {"id": last_id})


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.rebuilding")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
