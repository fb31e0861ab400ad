"""A server as a real process that can be killed and started again, and what a test sees of its streams."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from kargah.client import Client

PATIENCE_SECONDS = 120.0
TESTS = Path(__file__).parent
BERT = "HooshvareLab/bert-fa-base-uncased"
PICKLED = "HooshvareLab/distilbert-fa-zwnj-base"
NOBODY = "http://127.0.0.1:9"
"""An address where no hub answers."""


@dataclass(frozen=True)
class Told:
    """One event of a stream."""

    id: str | None
    data: dict[str, Any]


class Living:
    """One server on one data directory; `settings` are `KARGAH_…` without the prefix."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home.parent / f"{home.name}.log"
        self.client = Client(self.url, settings.get("token"), "en", patience_seconds=PATIENCE_SECONDS)
        self.process: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the server, and a command that talks to it, has around it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KARGAH_", "LC_", "HF_"))}
        ours = {f"KARGAH_{name.upper()}": value for name, value in self.settings.items()}
        return {
            **kept,
            "KARGAH_HOME": str(self.home),
            "KARGAH_URL": self.url,
            "OMP_NUM_THREADS": "1",
            "PYTHONUTF8": "1",
            "COLUMNS": "200",
            **ours,
        }

    def start(self) -> None:
        """Start it and wait until it says that it listens."""
        self.process = self.spawn("serve", "--port", str(self.port))
        assert self.process.stdout is not None
        said = [self.process.stdout.readline(), self.process.stdout.readline()]
        assert self.url in said[0], f"{said}\n{self.log.read_text(encoding='utf-8')[-3000:]}"

    def spawn(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command of kargah; its errors go to the log."""
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "kargah.app.cli", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=self.environment,
            )

    def run(self, *arguments: str, lang: str = "en", **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of kargah to its end."""
        return subprocess.run(
            [sys.executable, "-m", "kargah.app.cli", *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**self.environment, "KARGAH_LANG": lang, **environment},
            check=False,
        )

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """End it as an administrator does. Returns its exit code."""
        return self._end(signal.SIGTERM)

    def close(self) -> None:
        """End what runs."""
        if self.process is not None and self.process.poll() is None:
            self.terminate()
        self.client.close()

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    @contextmanager
    def open_stream(self, path: str, last: str | None = None, **params: str) -> Iterator[httpx.Response]:
        """A stream's raw answer."""
        headers = {"Last-Event-ID": last} if last else {}
        with httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE_SECONDS) as http:
            with http.stream("GET", path, params=params, headers=headers) as response:
                yield response

    def events(self, path: str, last: str | None = None, **params: str) -> list[Told]:
        """Every event of a stream until the server closes it."""
        with self.open_stream(path, last, **params) as response:
            assert response.status_code == 200, response.read()
            return list(told(response.iter_lines()))

    def follow(self, path: str, until: Callable[[dict[str, Any]], bool], **params: str) -> list[Told]:
        """Events of a stream until one of them is wanted; fails when the stream ends before."""
        seen = []
        with self.open_stream(path, **params) as response:
            assert response.status_code == 200, response.read()
            for event in told(response.iter_lines()):
                seen.append(event)
                if until(event.data):
                    return seen
        raise AssertionError(f"the stream ended: {seen[-1:]}\n{self.log.read_text(encoding='utf-8')[-3000:]}")

    def fetch(self, asset_id: str, kind: str = "model") -> list[Told]:
        """Download an asset and give its events to the end."""
        self.client.post(f"/api/{kind}s/download/start", {f"{kind}Id": asset_id})
        return self.events(f"/api/{kind}s/download/progress", **{f"{kind}Id": asset_id})

    def upload(self, folder: Path, name: str) -> str:
        """Upload the splits in a folder as a data set and wait until it is ready. Returns its id."""
        files = [(f"file:{path.stem}", (path.name, path.read_bytes())) for path in sorted(folder.glob("*.csv"))]
        columns = json.dumps({"text": "متن", "label": "برچسب"})
        response = httpx.post(
            f"{self.url}/api/datasets/upload",
            data={"name": name, "columns": columns},
            files=files,
            trust_env=False,
            timeout=PATIENCE_SECONDS,
        )
        assert response.status_code == 202, response.text
        dataset_id = response.json()["data"]["datasetId"]
        last = self.events("/api/datasets/download/progress", datasetId=dataset_id)[-1]
        assert last.data["status"] == "done", last
        return str(dataset_id)


MakeLiving = Callable[..., Living]
HoldModel = Callable[..., Path]


def told(lines: Iterator[str]) -> Iterator[Told]:
    """Events in the lines of a stream."""
    event_id: str | None = None
    for line in lines:
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: "):
            yield Told(event_id, json.loads(line[6:]))
            event_id = None


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
