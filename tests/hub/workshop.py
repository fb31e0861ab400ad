"""A real hub on loopback, a folder to fill it with, and workers as real processes."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from kargah.hub.endpoint import Endpoint
from kargah.hub.job import Job, Pins, TransferSettings, write_job
from kargah.hub.serve import folder_app

SMALL = TransferSettings(
    chunk_bytes=16 * 1024,
    connect_timeout_seconds=2.0,
    metadata_timeout_seconds=3.0,
    idle_timeout_seconds=0.4,
    stalled_after_seconds=0.15,
    idle_retries=3,
    rate_limit_retries=5,
    first_backoff_seconds=0.02,
    max_backoff_seconds=0.1,
    disk_margin_bytes=1024,
    report_every_seconds=0.02,
    lock_wait_seconds=0.3,
)
"""Settings small enough for a test to wait for."""

MESSAGE_TIMEOUT_SECONDS = 30.0


class RunningHub:
    """The folders below `root`, served as a hub."""

    def __init__(self, root: Path) -> None:
        self.root = root
        config = uvicorn.Config(folder_app(root), port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + MESSAGE_TIMEOUT_SECONDS
        while not self._server.started and time.monotonic() < until:
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def add(self, repo_id: str, files: Mapping[str, bytes], kind: str = "models") -> None:
        """Put files into a repository."""
        for path, content in files.items():
            place = self.root / kind / repo_id / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    def clear(self) -> None:
        """Remove every repository."""
        for entry in self.root.iterdir():
            shutil.rmtree(entry)

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()


@dataclass
class RunningWorker:
    """A worker process; `messages` grow as it writes them."""

    process: "subprocess.Popen[str]"
    messages: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> dict[str, Any] | None:
        """Its next message, or None when it ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return None
        self.messages.append(json.loads(line))
        return self.messages[-1]

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message that is `wanted`."""
        while (message := self.read()) is not None:
            if wanted(message):
                return message
        raise AssertionError(f"the worker ended: {self.messages[-1:]}")

    def until_bytes(self, num_bytes: int) -> None:
        """Until its progress says at least so many bytes."""
        self.until(lambda message: message["type"] == "progress" and message["bytesDownloaded"] >= num_bytes)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hang_up(self) -> None:
        """Close its standard input, as a server that dies does."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def finish(self) -> dict[str, Any]:
        """Its last message, after it ended."""
        while self.read() is not None:
            pass
        self.process.wait(MESSAGE_TIMEOUT_SECONDS)
        return self.messages[-1]

    @property
    def phases(self) -> list[str]:
        return [message["phase"] for message in self.messages if message["type"] == "phase"]


@dataclass
class Workshop:
    """Where a test's downloads live."""

    root: Path
    running: list[RunningWorker] = field(default_factory=list)

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    def job(self, repo_id: str, *endpoints: str | Endpoint, kind: str = "model", **more: Any) -> Job:
        return Job(
            repo_id=repo_id,
            kind=kind,
            endpoints=tuple(place if isinstance(place, Endpoint) else Endpoint(place) for place in endpoints),
            blobs=self.blobs,
            target=self.root / "snapshots" / repo_id,
            **{"pins": Pins(), "settings": SMALL, **more},
        )

    def folder(self, job: Job) -> Path:
        return self.root / "downloads" / job.repo_id.replace("/", "--")

    def start(self, job: Job, **environment: str) -> RunningWorker:
        """Start a worker on a job."""
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        write_job(folder / "job.json", job)
        process = subprocess.Popen(
            [sys.executable, "-m", "kargah.hub.worker", str(folder / "job.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
        )
        self.running.append(RunningWorker(process))
        return self.running[-1]

    def run(self, job: Job, **environment: str) -> RunningWorker:
        """Run a worker to its end."""
        worker = self.start(job, **environment)
        worker.finish()
        return worker
