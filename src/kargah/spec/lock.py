"""The lock that says a run is alive: a POSIX record lock (`fcntl.lockf`) on the file `lock` of the run directory.

Held means alive: the kernel drops it when the holder ends, however it ends, and a forked child does not inherit it.
POSIX also drops it when the holder opens and closes the same file a second time, so in the training program this
module alone opens it. Others ask with `F_GETLK` (`holder_pid`) and never take it to find out.

`exclusive` is for short work that two programs must not do at once, on a file of its own (`RunDir.checkpoints_lock`).
"""

import fcntl
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

# struct flock of <fcntl.h>: Linux and macOS order its members differently.
_FLOCK = "@qqihh" if sys.platform == "darwin" else "@hhqqi"


class LockHeld(Exception):
    """Another process holds the lock; `pid` is that process."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"{path.name} is held by process {pid}")
        self.pid = pid


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise `LockHeld` at once. Raises `OSError` when the file cannot be opened."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise LockHeld(self.path, holder_pid(self.path)) from error
        self._handle = handle

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Nobody else is inside an `exclusive` of the same file meanwhile: no process, no thread. Waits for its turn.

    A thread cannot take the same file again inside. Never to be used on a run's own lock, for closing the file would
    drop that. Raises `OSError` when the file cannot be opened, such as when its folder is gone.
    """
    # A record lock is the process's: other threads would be let in, and closing the file would drop it for them too.
    with _guard_of(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def holder_pid(path: Path) -> int | None:
    """The process that holds the lock on `path`, or None when nobody does (or there is no such file).

    Not to be called by a process that itself holds the lock: closing the file would drop it.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if sys.platform == "darwin":
            question = struct.pack(_FLOCK, 0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
            _, _, pid, kind, _ = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, question))
        else:
            question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, question))
        return None if kind == fcntl.F_UNLCK else int(pid)
    finally:
        os.close(handle)


class _Guard:
    """A lock among the threads of this process; forgotten when no thread uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_GUARDS: WeakValueDictionary[str, _Guard] = WeakValueDictionary()
_GUARDS_LOCK = threading.Lock()


def _guard_of(path: Path) -> _Guard:
    with _GUARDS_LOCK:
        return _GUARDS.setdefault(os.path.realpath(path), _Guard())
