"""The lock: held means alive, asked without taking it, dropped by the kernel however its holder ends."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kargah.spec.lock import FileLock, LockHeld, exclusive, holder_pid

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


_COUNT = """
import sys
from pathlib import Path
from kargah.spec.lock import exclusive
path, number = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(300):
    with exclusive(path):
        number.write_text(str(int(number.read_text()) + 1))
"""


def test_exclusive_work_of_two_processes_and_their_threads_never_overlaps(tmp_path: Path) -> None:
    path, number = tmp_path / "checkpoints.lock", tmp_path / "number"
    number.write_text("0")
    command = [sys.executable, "-c", _COUNT, str(path), str(number)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def count() -> None:
        for _ in range(300):
            with exclusive(path):
                number.write_text(str(int(number.read_text()) + 1))

    threads = [threading.Thread(target=count) for _ in range(2)]
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for thread in threads:
            thread.start()
        other.communicate("go\n")
    finally:
        other.kill()
        for thread in threads:
            thread.join()
    assert other.returncode == 0
    assert number.read_text() == "900"


def test_exclusive_waits_for_a_process_and_is_freed_by_its_death(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.lock"
    entered = threading.Event()

    def enter() -> None:
        with exclusive(path):
            entered.set()

    with _holding(path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
        process.send_signal(signal.SIGKILL)
        assert entered.wait(30)
        thread.join()


def test_exclusive_gives_the_lock_back_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.lock"
    with pytest.raises(RuntimeError), exclusive(path):
        raise RuntimeError("inside")
    with exclusive(path):
        pass
    with pytest.raises(OSError, match="No such file"), exclusive(tmp_path / "missing" / "checkpoints.lock"):
        pass
