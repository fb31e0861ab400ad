"""A migrated database of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kargah.ground.db import Database
from kargah.ground.migrate import migrate


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'kargah.db'}")
    migrate(database, tmp_path / "backups")
    yield database
    database.close()
