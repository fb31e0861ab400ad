"""What Kargah relies on when several processes share a disk, tried with a second process: network disks often fail it.

rename, hard link   a checkpoint and a snapshot come to be by them
lock                `fcntl.lockf`, by which a run is known to be alive: seen from outside, and gone with its holder
SQLite in WAL       two processes write; neither loses a row, and one waits for the other
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kargah.app.doctor.findings import Examination, Facts, State
from kargah.app.doctor.peer import BUSY_SECONDS, write_rows
from kargah.spec.layout import fsync_folder
from kargah.spec.lock import FileLock, LockHeld, holder_pid
from kargah.text.languages import Language

PEER = "kargah.app.doctor.peer"
PEER_SECONDS = 40.0
RELEASE_SECONDS = 10.0
NUM_ROWS = 100


class Broken(Exception):
    """Something does not work here as Kargah needs it; the text says what was seen."""


def examine_sharing(scratch: Path, language: Language, *, uses_sqlite: bool) -> Examination:
    """Try each in `scratch`, an empty folder on the disk in question."""
    found = Examination(language)
    trials: tuple[tuple[str, str, State, Callable[[Path], None]], ...] = (
        ("rename", "disk", "error", _rename),
        ("hardLink", "disk", "warning", _hard_link),
        ("lock", "locks", "error", _lock),
        ("sqliteWal", "database", "error" if uses_sqlite else "warning", _sqlite_wal),
    )
    for name, subject, severity, trial in trials:
        problem = _problem_of(trial, scratch)
        found.facts[name] = "works" if problem is None else f"broken: {problem}"
        if problem is not None:
            found.find(subject, severity, f"disk.{name}Broken", problem=problem)
        elif name in ("lock", "sqliteWal"):
            found.find(subject, "ok", f"disk.{name}Works")
    return found


class Peer:
    """The second process; ended at the latest after `PEER_SECONDS`."""

    def __init__(self, what: str, file: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", PEER, what, str(file), "--rows", str(NUM_ROWS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,
        )
        self._timer = threading.Timer(PEER_SECONDS, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self) -> Facts:
        """Its next line. Raises `Broken` when it ended, or says that something is wrong."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        said: Facts = json.loads(line) if line else {"problem": "the second process gave no answer"}
        if "problem" in said:
            raise Broken(said["problem"])
        return said

    def go_on(self) -> None:
        """Let it go on from where it waits."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _problem_of(trial: Callable[[Path], None], scratch: Path) -> str | None:
    try:
        trial(scratch)
    except Broken as broken:
        return str(broken)
    except OSError as error:
        return error.strerror or type(error).__name__
    except sqlite3.Error as error:
        return f"{type(error).__name__}: {error}"
    return None


def _rename(scratch: Path) -> None:
    old, new = scratch / "rename-old", scratch / "rename-new"
    old.write_text("old", encoding="utf-8")
    new.write_text("new", encoding="utf-8")
    os.replace(new, old)
    fsync_folder(scratch)
    if old.read_text(encoding="utf-8") != "new" or new.exists():
        raise Broken("a file was not replaced")
    folder = scratch / "rename-folder"
    folder.mkdir()
    (folder / "inside").touch()
    os.rename(folder, scratch / "rename-moved")
    if folder.exists() or not (scratch / "rename-moved" / "inside").exists():
        raise Broken("a folder was not renamed")


def _hard_link(scratch: Path) -> None:
    first, second = scratch / "link-first", scratch / "link-second"
    first.write_text("one", encoding="utf-8")
    os.link(first, second)
    if not os.path.samefile(first, second) or first.stat().st_nlink != 2:
        raise Broken("a link is another file")


def _lock(scratch: Path) -> None:
    file = scratch / "lock"
    with Peer("lock", file) as peer:
        peer.answer()
        if holder_pid(file) != peer.pid:
            raise Broken("the lock of another process is not seen")
        try:
            with FileLock(file):
                raise Broken("two processes hold one lock")
        except LockHeld:
            pass
        peer.kill()
        until = time.monotonic() + RELEASE_SECONDS
        while holder_pid(file) is not None:
            if time.monotonic() > until:
                raise Broken("the lock outlives its holder")
            time.sleep(0.01)
    try:
        with FileLock(file):
            pass
    except LockHeld as error:
        raise Broken("the lock cannot be taken after its holder ended") from error


def _sqlite_wal(scratch: Path) -> None:
    file = scratch / "probe.db"
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        mode = _one(connection, "PRAGMA journal_mode=WAL")
        if mode != "wal":
            raise Broken(f"the journal stays in mode {mode}")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("CREATE TABLE probe (id INTEGER PRIMARY KEY, value INTEGER)")
        connection.execute("INSERT INTO probe (value) VALUES (1)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO probe (value) VALUES (2)")
        with Peer("sqlite", file) as peer:
            seen = peer.answer()
            if seen["numRows"] != 1:
                raise Broken("another process sees what was not committed, or not what was")
            if not seen["isKeptOut"]:
                raise Broken("two processes write at once")
            connection.execute("COMMIT")
            peer.go_on()
            write_rows(connection, NUM_ROWS)
            peer.answer()
        if _one(connection, "SELECT count(*) FROM probe") != 2 + 2 * NUM_ROWS:
            raise Broken("rows were lost")
        if _one(connection, "PRAGMA integrity_check") != "ok":
            raise Broken("the file is damaged")
    finally:
        connection.close()


def _one(connection: sqlite3.Connection, statement: str) -> Any:
    row = connection.execute(statement).fetchone()
    return row[0] if row else None
