"""The local executor: an attempt is a child process in a session of its own, which outlives the server.

The handle of an attempt is its process id, for the lock in the run directory says who is alive.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import psutil

from kargah.ground.settings import SECRET_VARIABLES
from kargah.spec.layout import RunDir
from kargah.spec.lock import holder_pid

PROGRAM = "kargah.compute.train"
NEEDED = ("torch", "transformers", "accelerate", "safetensors")


class LocalExecutor:
    """Starts training programs on this machine and tells whether they live."""

    host = socket.gethostname()

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._guard = threading.Lock()

    def submit(self, run: RunDir, attempt: int, gpu: int | None = None) -> int:
        """Start attempt `attempt` of a run, on one GPU alone where there is one. Returns the process id.

        Raises `OSError`.
        """
        folder = run.attempt(attempt)
        folder.root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", PROGRAM, str(run.root), "--attempt", str(attempt)]
        with open(folder.output, "ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment(gpu),
                cwd=run.root,
                start_new_session=True,
                close_fds=True,
            )
        with self._guard:
            self._children[child.pid] = child
        return child.pid

    def alive(self, run: RunDir, pid: int | None) -> bool:
        """Whether an attempt lives: its lock is held, or (just started, no lock yet) its process runs.

        That process may be a child of a server that was killed a moment ago.
        """
        if holder_pid(run.lock) is not None:
            return True
        if pid is None:
            return False
        with self._guard:
            child = self._children.get(pid)
        return child.poll() is None if child is not None else _runs(pid, run)

    def kill(self, run: RunDir, pid: int | None = None) -> None:
        """End the program that holds a run's lock, or is about to take it as `pid`, with its workers, at once."""
        found = holder_pid(run.lock)
        if found is None and pid is not None and self.alive(run, pid):
            found = pid
        if found is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(found, signal.SIGKILL)

    def reap(self, pid: int | None) -> int | None:
        """The exit code of a child of this server that ended, or None."""
        with self._guard:
            child = self._children.get(pid) if pid is not None else None
            if child is None or child.poll() is None:
                return None
            del self._children[child.pid]
        return child.returncode

    @staticmethod
    def gpus() -> tuple[int, ...]:
        """Numbers of the GPUs that runs may have: those of this machine, or of them those in `CUDA_VISIBLE_DEVICES`."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        present = sorted(int(path.name.removeprefix("nvidia")) for path in Path("/dev").glob("nvidia[0-9]*"))
        if visible is None:
            return tuple(present)
        return tuple(int(part) for part in visible.split(",") if part.strip().isdigit() and int(part) in present)

    @staticmethod
    def has_gpu() -> bool:
        """Whether this machine shows a GPU (NVIDIA's, AMD's, or WSL2's door to one); torch is not asked."""
        return any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "kfd", "dxg"))


def compute_installed() -> bool:
    """Whether the training part is installed; found out without importing it."""
    return all(find_spec(name) is not None for name in NEEDED)


def child_environment(gpu: int | None = None) -> dict[str, str]:
    """The environment of a compute child: no hub, no telemetry, no server secrets, threads for every physical core.

    With `gpu` it sees that one alone.
    """
    kept = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    threads = str(psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    kept.setdefault("OMP_NUM_THREADS", threads)
    # A thread that waits must not spin: beside any other busy process it would hold up the thread it waits for.
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if gpu is not None:
        kept["CUDA_VISIBLE_DEVICES"] = str(gpu)
    kept.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
        PYTHONUNBUFFERED="1",
        PYTHONUTF8="1",
    )
    return kept


def _runs(pid: int, run: RunDir) -> bool:
    """Whether the process is the training program of this run; numbers of processes are used again by others."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and str(run.root) in process.cmdline()
    except psutil.Error:
        return False
