"""A disk that is really full: a small file system of the test's own, made in a user namespace."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from living import BERT, PATIENCE_SECONDS, Living

from kargah.spec.control import read_exit
from kargah.spec.layout import RunDir

SIZE_MB = 340
_MAKES_ONE = ["unshare", "--user", "--map-root-user", "--mount"]


def _can_make_one() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_MAKES_ONE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _can_make_one(), reason="no user namespaces here: a small disk cannot be made")


class SmallDisk(Living):
    """A server whose data directory is a small file system that only it sees."""

    def spawn(self, *arguments: str) -> "subprocess.Popen[str]":
        self.home.mkdir(parents=True, exist_ok=True)
        mount = f'mount -t tmpfs -o size={SIZE_MB}m tmpfs "$KARGAH_HOME" && exec "$0" -m kargah.app.cli "$@"'
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [*_MAKES_ONE, "sh", "-c", mount, sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=self.environment,
            )

    @property
    def inside(self) -> Path:
        """The small disk as this process reaches it."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.home}")

    def fill(self, *, leave_bytes: int = 0) -> Path:
        """Fill the disk up. Returns the file that does."""
        filler = self.inside / "filler"
        with open(filler, "wb", buffering=0) as file:
            wanted = max(0, shutil.disk_usage(self.inside).free - leave_bytes)
            try:
                while wanted > 0:
                    wanted -= file.write(b"\0" * min(wanted, 1 << 16))
            except OSError:
                pass
        return filler


@pytest.fixture
def small(tmp_path: Path, site_catalog: Path, model_hub: str) -> Iterator[SmallDisk]:
    living = SmallDisk(tmp_path / "home", catalog=str(site_catalog), hub_endpoint=model_hub)
    living.start()
    yield living
    living.close()


def _upload(live: Living, num_bytes: int) -> httpx.Response:
    rows = "text,label\n" + "".join(f"متن شمارهٔ {n},{n % 2}\n" for n in range(num_bytes // 20))
    return httpx.post(
        f"{live.url}/api/datasets/upload",
        data={"name": "بزرگ", "columns": json.dumps({"text": "text", "label": "label"})},
        files={"file": ("rows.csv", rows.encode())},
        headers={"Accept-Language": "fa"},
        trust_env=False,
        timeout=PATIENCE_SECONDS,
    )


def _refused(answer: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["error"]) == (507, "DISK_FULL"), answer.text
    assert "دیسک" in body["message"]
    return body


def test_a_full_disk_is_said_and_nothing_is_lost(small: SmallDisk) -> None:
    http = httpx.Client(base_url=small.url, headers={"Accept-Language": "fa"}, trust_env=False, timeout=60)
    arrived = small.fetch(BERT)[-1].data
    assert arrived["status"] == "done", json.dumps(arrived)
    first = _upload(small, 200_000).json()["data"]["datasetId"]
    assert small.events("/api/datasets/download/progress", datasetId=first)[-1].data["status"] == "done"

    # More than there is room for is refused by its length, before a byte of it is kept.
    small.fill(leave_bytes=30_000_000)
    found = _refused(_upload(small, 40_000_000))
    assert found["details"]["neededBytes"] > found["details"]["freeBytes"] > 0

    # Full to the last byte: nothing starts, everything can still be looked at.
    filler = small.fill()
    assert shutil.disk_usage(small.inside).free == 0
    body = {"baseModel": BERT, "datasets": [first], "config": {"maxSteps": 1}}
    _refused(http.post("/api/training/start", json=body))
    _refused(_upload(small, 100_000))
    assert http.get("/api/health").json()["data"]["status"] == "ready"
    assert [asset["id"] for asset in http.get("/api/datasets").json()["data"] if asset["source"] == "local"] == [first]
    assert http.get(f"/api/datasets/{first}/rows").json()["data"]["total"] > 1000
    assert http.get("/api/analysis/training/jobs").json()["page"]["total"] == 0
    assert list((small.inside / "runs").iterdir()) == []
    assert list((small.inside / "uploads").iterdir()) == []

    # A run that finds the disk full is paused with its reason, and goes on by itself when there is room.
    filler.unlink()
    steps = 3000
    body["config"] = {"maxSteps": steps, "checkpointEverySteps": steps, "logEverySteps": 1, "maxLength": 16}
    answer = http.post("/api/training/start", json=body)
    assert answer.status_code == 200, answer.text
    run_id = answer.json()["data"]["runId"]
    small.follow(f"/api/training/stream/{run_id}", lambda data: (data.get("step") or 0) >= 3)
    program = psutil.Process(int(http.get(f"/api/training/status/{run_id}").json()["data"]["attempt"]["pid"]))
    small.fill()
    with contextlib.suppress(psutil.NoSuchProcess):
        program.wait(PATIENCE_SECONDS)
    left = read_exit(RunDir(small.inside / "runs" / run_id).attempt(1).exit)
    assert left is not None
    assert (left.error, left.retryable) == ("DISK_FULL", True)
    # The server can say so although the disk is full: it kept room for that.
    small.follow(f"/api/training/stream/{run_id}", lambda data: data.get("status") == "paused")
    paused = http.get(f"/api/training/status/{run_id}").json()["data"]
    assert (paused["error"], paused["attempt"]["number"]) == ("DISK_FULL", 1)
    assert "دیسک" in paused["message"]
    assert "دیسک پر است" in paused["logs"][-1]["message"]
    assert http.get("/api/health").json()["data"]["status"] == "ready"
    (small.inside / "filler").unlink()
    ended = small.events(f"/api/training/stream/{run_id}")[-1].data
    assert ended["status"] == "completed", ended
    assert http.get(f"/api/training/status/{run_id}").json()["data"]["attempt"]["number"] > 1
    rows = http.get(f"/api/analysis/training/export/{run_id}?format=json").json()
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    http.close()
