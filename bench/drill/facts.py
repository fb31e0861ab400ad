"""What database and disk hold of runs, read beside the server: the SQLite file read-only, the files as they are."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from kargah.spec.layout import RunDir, checkpoint_name
from kargah.spec.manifest import FolderDamaged, verify_folder

BUSY_SECONDS = 30.0

Row = tuple[Any, ...]


class Facts:
    """The database of one data directory."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = home / "kargah.db"

    def statuses(self) -> dict[str, str]:
        """Every run's state."""
        with self._open() as database:
            return dict(database.execute("SELECT id, status FROM runs").fetchall())

    def metrics(self, run_id: str) -> dict[int, Row]:
        """By step: loss, validation loss, accuracy, learning rate, epoch, and what was not finite.

        Not the throughput, which is the machine's mood. Raises `ValueError` when a step stands twice.
        """
        query = (
            "SELECT step, loss, val_loss, accuracy, learning_rate, epoch, non_finite FROM training_metrics "
            "WHERE run_id = ? ORDER BY step"
        )
        with self._open() as database:
            rows = database.execute(query, (run_id,)).fetchall()
        found = {row[0]: tuple(row[1:]) for row in rows}
        if len(found) != len(rows):
            raise ValueError(f"{len(rows) - len(found)} steps stand twice")
        return found

    def events(self, run_id: str) -> list[tuple[int, str, dict[str, Any]]]:
        """Every event of a run: id, type, data."""
        query = "SELECT id, type, data FROM events WHERE topic = ? ORDER BY id"
        with self._open() as database:
            rows = database.execute(query, (f"runs:{run_id}",)).fetchall()
        return [(row[0], row[1], json.loads(row[2])) for row in rows]

    def num_living_attempts(self) -> int:
        """Attempts that the database takes for living."""
        with self._open() as database:
            query = "SELECT count(*) FROM attempts WHERE state IN ('starting', 'running')"
            return int(database.execute(query).fetchone()[0])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # `with` of a connection is a transaction, not its life.
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as database:
            yield database


def weights_of(run_dir: RunDir, step: int) -> dict[str, bytes]:
    """The weights that a run ended with: every safetensors file of its checkpoint at `step`, as bytes."""
    folder = run_dir.checkpoints / checkpoint_name(step)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def damage_of(folder: Path) -> str | None:
    """Why a checkpoint's folder is not what its manifest says, or None."""
    try:
        verify_folder(folder)
    except (FolderDamaged, OSError) as error:
        return str(error)
    return None


def processes_of(home: Path) -> dict[int, str]:
    """Processes that work on a data directory: it stands in their command line, or they stand in it."""
    # The drill itself, and the shell that started it, may well name the directory.
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = {}
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        command, place = process.info["cmdline"] or [], process.info["cwd"]
        is_inside = place is not None and Path(place).is_relative_to(home)
        if process.pid not in ours and (is_inside or any(str(home) in part for part in command)):
            found[process.pid] = f"{process.info['status']}: {' '.join(command)[:200]}"
    return found


def zombies_of(server_pid: int) -> list[int]:
    """Children of the server that ended and that it has not asked after."""
    return [
        child.pid
        for child in psutil.Process(server_pid).children(recursive=True)
        if child.status() == psutil.STATUS_ZOMBIE
    ]
