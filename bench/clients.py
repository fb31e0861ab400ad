"""Those who download, each a process of its own in an empty place: Kargah's worker, the hub's own client, curl."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.hub import SENT
from kargah.hub.endpoint import Endpoint
from kargah.hub.job import Job, write_job

_ROOT = Path(__file__).parents[1]
_PEER = (
    "import sys; from huggingface_hub import snapshot_download; "
    "snapshot_download(sys.argv[1], repo_type=sys.argv[2], endpoint=sys.argv[3], cache_dir=sys.argv[4])"
)
_POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a process ended. CPU seconds include its children's."""

    seconds: float
    cpu_seconds: float
    code: int


class Hub:
    """A running `bench.hub`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def sent(self) -> tuple[int, int]:
        """Bytes of files that left it, and requests it answered."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url + SENT, timeout=30) as answer:
            counted = json.load(answer)
        return counted["bytes"], counted["requests"]


@contextmanager
def hub(root: Path, **faults: float) -> Iterator[Hub]:
    """Run a hub on the folders below `root`, with faults by the names of its options."""
    options = [word for name, value in faults.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.hub", str(root), *options], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield Hub(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def empty(folder: Path) -> Iterator[Path]:
    """An empty place on a disk that has nothing else to write; removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kargah(url: str, kind: str, repo_id: str, folder: Path) -> list[str]:
    """The command of Kargah's worker, with the settings it ships with. Its job goes into `folder`."""
    job = folder / "job.json"
    write_job(job, Job(repo_id, kind, (Endpoint(url),), folder / "blobs", folder / "snapshot"))
    return [sys.executable, "-m", "kargah.hub.worker", str(job)]


def peer(url: str, kind: str, repo_id: str, folder: Path) -> list[str]:
    """The command of `huggingface_hub.snapshot_download`, with the settings it ships with."""
    return [sys.executable, "-c", _PEER, repo_id, kind, url, str(folder / "cache")]


def shell(line: str, url: str, folder: Path) -> list[str]:
    """A line for the shell with `URL` and `FILE` filled in."""
    return ["sh", "-c", line.replace("URL", shlex.quote(url)).replace("FILE", shlex.quote(str(folder / "file")))]


def run(command: list[str], folder: Path, *, until: Callable[[], bool] | None = None) -> Outcome:
    """Run a command to its end, or kill it with -9 as soon as `until` holds. Its output is thrown away."""
    began_at = time.perf_counter()
    # A worker ends when its standard input does, so that is a pipe nobody writes to.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(folder)
    )
    if until is not None:
        while not until() and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(_POLL_SECONDS)
        process.send_signal(signal.SIGKILL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began_at
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stdin is not None
    process.stdin.close()
    return Outcome(seconds, used.ru_utime + used.ru_stime, process.returncode)


def largest_bytes(folder: Path) -> int:
    """The size of the largest file below `folder`: how far a download is, whoever does it."""
    sizes = [0]
    for place in folder.rglob("*"):
        try:
            sizes.append(place.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes)


def _environment(folder: Path) -> dict[str, str]:
    foreign = ("http_proxy", "https_proxy", "all_proxy", "hf_endpoint", "hf_token", "hf_hub_offline")
    kept = {name: value for name, value in os.environ.items() if name.lower() not in foreign}
    # Without its bars and its telemetry the peer has less to do.
    return kept | {
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
