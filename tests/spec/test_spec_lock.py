"""The lock: held means alive, asked without taking it, dropped by the kernel however its holder ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kargah.spec.lock import FileLock, LockHeld, holder_pid

_HOLD = """
import os, sys
from pathlib import Path
from kargah.spec.lock import FileLock
FileLock(Path(sys.argv[1])).acquire()
{then}
os.write(1, b"%d\\n" % os.getpid())
sys.stdin.read()
"""
_FORK = """
child = os.fork()
if child == 0:
    os.write(1, b"forked %d\\n" % os.getpid())
    sys.stdin.read()
    os._exit(0)
"""


@contextmanager
def _holding(path: Path, then: str = "") -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD.format(then=then), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_told_who(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _holding(path) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        assert holder_pid(path) == process.pid
        with pytest.raises(LockHeld) as refused:
            FileLock(path).acquire()
        assert refused.value.pid == process.pid
        # Being refused, and asking, must not have taken it away.
        assert holder_pid(path) == process.pid


def test_kill_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _holding(path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert holder_pid(path) is None
        with FileLock(path):
            pass


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _holding(path, _FORK) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(2)]
        forked = next(int(words[1]) for words in said if words[0] == "forked")
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(forked, 0)  # it lives on, as a worker of a data loader may
        assert holder_pid(path) is None
        os.kill(forked, signal.SIGKILL)


def test_release_and_files_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder_pid(path) is None
    assert not path.exists()
    lock = FileLock(path)
    lock.acquire()
    lock.release()
    lock.release()
    assert holder_pid(path) is None
    with pytest.raises(OSError, match="No such file"):
        FileLock(tmp_path / "missing" / "lock").acquire()
