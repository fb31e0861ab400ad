"""Bringing the database to the present schema, by the server itself, at start.

On SQLite the file is copied first (`backups/`), so that a migration that fails loses nothing.
"""

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from kargah.ground.db import Base, Database
from kargah.ground.errors import CannotStart
from kargah.ground.ids import now


class DatabaseTooNew(CannotStart):
    """The database was written by a newer Kargah."""

    code = "DATABASE_TOO_NEW"


def migrate(database: Database, backups: Path) -> str:
    """Apply what is missing; returns the revision that is in force. Raises `DatabaseTooNew`."""
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head() or ""
    present = current_revision(database)
    if present == head:
        return head
    if present is not None and present not in {script.revision for script in scripts.walk_revisions()}:
        raise DatabaseTooNew(revision=present)
    if present is not None and database.file is not None:
        _copy(database.file, backups / f"kargah-{present}-{now():%Y%m%dT%H%M%SZ}.db")
    with database.engine.execution_options(kargah_begin="BEGIN IMMEDIATE").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return head


def current_revision(database: Database) -> str | None:
    """The revision the database is at; None for an empty one."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "kargah.ground:migrations")
    config.attributes["target_metadata"] = Base.metadata
    return config


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
