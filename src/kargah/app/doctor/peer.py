"""The second process of the disk's tests: `python -m kargah.app.doctor.peer lock|sqlite FILE [--rows N]`.

`lock` takes the lock on FILE, says so, and keeps it until its standard input ends. `sqlite` reads a database in which
another process has a transaction open, tries to write beside it, waits for a line, and then writes rows of its own.
Both print one JSON object a line.
"""

import argparse
import json
import sqlite3
import sys
from pathlib import Path

from kargah.spec.lock import FileLock, LockHeld

BUSY_SECONDS = 15.0


def main(argv: list[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m kargah.app.doctor.peer", description="Share a file, as a test.")
    parser.add_argument("what", choices=("lock", "sqlite"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=100)
    arguments = parser.parse_args(argv)
    try:
        if arguments.what == "lock":
            _hold(arguments.file)
        else:
            _write_beside(arguments.file, arguments.rows)
    except (OSError, LockHeld, sqlite3.Error) as error:
        _tell(problem=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _hold(file: Path) -> None:
    with FileLock(file):
        _tell(isHeld=True)
        sys.stdin.read()


def _write_beside(file: Path, num_rows: int) -> None:
    connection = sqlite3.connect(file, timeout=0.0, isolation_level=None)
    (seen,) = connection.execute("SELECT count(*) FROM probe").fetchone()
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        is_kept_out = False
    except sqlite3.OperationalError as error:
        is_kept_out = "locked" in str(error)
    _tell(numRows=seen, isKeptOut=is_kept_out)
    sys.stdin.readline()
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
    write_rows(connection, num_rows)
    connection.close()
    _tell(numWritten=num_rows)


def write_rows(connection: sqlite3.Connection, num_rows: int) -> None:
    """One transaction a row, as the server begins its own."""
    for number in range(num_rows):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO probe (value) VALUES (?)", (number,))
        connection.execute("COMMIT")


def _tell(**record: object) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
