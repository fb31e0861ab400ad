"""The database: writers never meet a lock, a transaction is whole, migrations lead to the models."""

import sqlite3
import threading
from datetime import UTC, datetime, timedelta, timezone
from importlib import import_module
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, inspect, select, text

from kargah.ground import migrate as migrate_module
from kargah.ground.db import Base, Database, after_commit
from kargah.ground.events import EventLog, EventRow
from kargah.ground.ids import now
from kargah.ground.migrate import DatabaseTooNew, current_revision, migrate

for room in ("ground.events", "assets.models", "metrics.models", "runs.models"):
    import_module(f"kargah.{room}")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'kargah.db'}")
    migrate(database, tmp_path / "backups")
    return database


def _count(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(EventRow)) or 0


def test_two_threads_and_a_second_connection_write_without_a_locked_database(database: Database) -> None:
    other = Database(database.url)
    problems: list[BaseException] = []

    def write(through: Database) -> None:
        log = EventLog(through)
        try:
            for number in range(60):
                with through.write() as session:
                    # Reading first is what makes a deferred transaction fail when it then wants to write.
                    session.scalar(select(func.count()).select_from(EventRow))
                    log.append(session, "t", "happened", {"n": number})
        except BaseException as error:  # noqa: BLE001 - shown below
            problems.append(error)

    threads = [threading.Thread(target=write, args=(through,)) for through in (database, database, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert problems == []
    assert _count(database) == 180


def test_readers_see_one_moment(database: Database) -> None:
    log = EventLog(database)
    with database.read() as session:
        before = session.scalar(select(func.count()).select_from(EventRow))
        with database.write() as writing:
            log.append(writing, "t", "happened", {})
        assert session.scalar(select(func.count()).select_from(EventRow)) == before
    assert _count(database) == 1


def test_a_raising_block_is_rolled_back_and_nobody_is_told(database: Database) -> None:
    told: list[int] = []

    def write() -> None:
        with database.write() as session:
            EventLog(database).append(session, "t", "happened", {})
            after_commit(session, lambda: told.append(1))
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert _count(database) == 0
    assert told == []


def test_after_commit_runs_in_order_and_after_the_commit(database: Database) -> None:
    told: list[tuple[str, int]] = []
    with database.write() as session:
        EventLog(database).append(session, "t", "happened", {})
        for name in "abc":
            after_commit(session, lambda name=name: told.append((name, _count(database))))
        assert told == []
    assert told == [("a", 1), ("b", 1), ("c", 1)]


def test_callbacks_of_two_threads_come_in_the_order_of_the_ids(database: Database) -> None:
    log, told = EventLog(database), []
    guard = threading.Barrier(2)

    def write() -> None:
        guard.wait()
        for _ in range(50):
            with database.write() as session:
                event_id = log.append(session, "t", "happened", {})
                after_commit(session, lambda event_id=event_id: told.append(event_id))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == sorted(told)
    assert len(told) == 100


def test_pragmas_hold_on_every_connection(database: Database) -> None:
    with database.engine.connect() as one, database.engine.connect() as two:
        for connection in (one, two):
            values = {
                name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "foreign_keys")
            }
            assert values == {"journal_mode": "wal", "foreign_keys": 1}


def test_times_keep_their_zone(database: Database) -> None:
    moment = datetime(2026, 3, 21, 3, 30, tzinfo=timezone(timedelta(hours=3, minutes=30)))
    with database.write() as session:
        session.add(EventRow(topic="t", type="x", data="{}", created_at=moment))
    with database.read() as session:
        kept = session.scalars(select(EventRow)).one().created_at
    assert kept == moment
    assert kept.tzinfo is UTC
    with pytest.raises(Exception, match="without a zone"), database.write() as session:
        session.add(EventRow(topic="t", type="x", data="{}", created_at=datetime(2026, 1, 1)))


def test_migrations_lead_from_nothing_to_the_models(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    assert current_revision(database) is None
    head = migrate(database, tmp_path / "backups")
    assert current_revision(database) == head
    assert migrate(database, tmp_path / "backups") == head
    assert not (tmp_path / "backups").exists()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        options = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'training_metrics'")).scalar_one()
    assert "WITHOUT ROWID" in options


def _add_migration(folder: Path, revision: str, below: str, statement: str) -> None:
    (folder / f"{revision}_later.py").write_text(
        "from alembic import op\n"
        f'revision = "{revision}"\ndown_revision = "{below}"\nbranch_labels = None\ndepends_on = None\n'
        f"def upgrade():\n    op.execute({statement!r})\n",
        encoding="utf-8",
    )


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The migrations of a later release: the real ones in a folder to which more can be added."""
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    origin = Path(migrate_module.__file__).parent / "migrations"
    for path in [origin / "env.py", *origin.glob("versions/0*.py")]:
        (folder / path.relative_to(origin)).write_bytes(path.read_bytes())
    config = migrate_module._config

    def of_later_release() -> object:
        made = config()
        made.set_main_option("script_location", str(folder))
        return made

    monkeypatch.setattr(migrate_module, "_config", of_later_release)
    return folder / "versions"


def test_a_copy_is_made_before_a_later_migration(database: Database, tmp_path: Path, later: Path) -> None:
    head = current_revision(database)
    assert head is not None
    with database.write() as session:
        EventLog(database).append(session, "t", "happened", {"پیام": "سلام"})
    _add_migration(later, "9001", head, "CREATE TABLE later (id INTEGER)")
    assert migrate(database, tmp_path / "backups") == "9001"
    assert "later" in inspect(database.engine).get_table_names()
    (copy,) = (tmp_path / "backups").iterdir()
    assert copy.name.startswith(f"kargah-{head}-")
    with sqlite3.connect(copy) as old:
        assert old.execute("SELECT count(*) FROM events").fetchone() == (1,)
        assert old.execute("SELECT version_num FROM alembic_version").fetchone() == (head,)


def test_a_migration_that_fails_changes_nothing(database: Database, tmp_path: Path, later: Path) -> None:
    head = current_revision(database)
    assert head is not None
    _add_migration(later, "9001", head, "CREATE TABLE later (id INTEGER)")
    _add_migration(later, "9002", "9001", "CREATE TABLE broken (")
    with pytest.raises(Exception, match=r"broken|incomplete"):
        migrate(database, tmp_path / "backups")
    assert current_revision(database) == head
    assert "later" not in inspect(database.engine).get_table_names()


def test_a_database_of_a_newer_release_is_refused(database: Database, tmp_path: Path) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew) as refused:
        migrate(database, tmp_path / "backups")
    assert "9999" in refused.value.message("en")


def test_ids_of_events_are_never_given_twice(database: Database) -> None:
    log = EventLog(database)
    with database.write() as session:
        last = [log.append(session, "t", "happened", {}) for _ in range(3)][-1]
        session.execute(text("DELETE FROM events"))
    with database.write() as session:
        assert log.append(session, "t", "happened", {}) > last
    assert now().tzinfo is UTC
