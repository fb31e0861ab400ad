"""Offline means that no socket leaves the machine: every Python process is watched while the real thing works.

The watcher hears what Python's sockets do; code that opens sockets without them would not be heard.
"""

import time
from pathlib import Path

import pytest
from living import PATIENCE_SECONDS, Living

from kargah.client import ApiError

WATCHED = Path(__file__).parent / "watched"
MODEL, DATASET = "kargah/mini-fa", "kargah/support-fa"
FAR = "http://hub.invalid"


class WatchedLiving(Living):
    """A server whose processes, and theirs, write down what leaves the machine."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "PYTHONPATH": str(WATCHED), "WATCHED_FILE": str(self.record)}

    @property
    def record(self) -> Path:
        return self.home.parent / f"{self.home.name}.record"

    @property
    def lines(self) -> list[str]:
        return self.record.read_text(encoding="utf-8").splitlines()

    @property
    def far(self) -> list[str]:
        """What left the machine."""
        return [line for line in self.lines if not line.startswith("start ")]

    def was_watched(self, part: str) -> bool:
        """Whether a process with this in its command line was watched."""
        return any(line.startswith("start ") and part in line for line in self.lines)


def _living(tmp_path: Path, site_catalog: Path, name: str, **settings: str) -> WatchedLiving:
    living = WatchedLiving(tmp_path / name, catalog=str(site_catalog), hub_endpoint=FAR, **settings)
    living.start()
    return living


def _train(living: Living, dataset_id: str) -> str:
    body = {"baseModel": MODEL, "datasets": [dataset_id], "config": {"maxSteps": 3, "batchSize": 4, "maxLength": 32}}
    run_id = str(living.client.post("/api/training/start", body)["runId"])
    last = living.events(f"/api/training/stream/{run_id}")[-1]
    assert last.data["type"] in ("state", "snapshot"), last
    return str(living.client.get(f"/api/training/status/{run_id}")["status"])


def _rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = [f"جملهٔ شمارهٔ {number},{'خوب' if number % 2 else 'بد'}" for number in range(40)]
    for name in ("train", "validation"):
        (folder / f"{name}.csv").write_text("\n".join(["متن,برچسب", *lines]), encoding="utf-8")
    return folder


def test_offline_nothing_leaves_the_machine(tmp_path: Path, site_catalog: Path) -> None:
    living = _living(tmp_path, site_catalog, "offline", offline="1")
    try:
        dataset_id = living.upload(_rows(tmp_path), "نظرها")
        assert _train(living, dataset_id) == "completed"
        assert _train(living, DATASET) == "completed"
        for kind, any_id in (("model", "HooshvareLab/bert-fa-base-uncased"), ("dataset", "site/opinions")):
            with pytest.raises(ApiError) as refused:
                living.client.post(f"/api/{kind}s/download/start", {f"{kind}Id": any_id})
            assert refused.value.code == "OFFLINE"
        with pytest.raises(ApiError) as refused:
            living.client.post("/api/hub/endpoints/test", {})
        assert refused.value.code == "OFFLINE"
        csv = str(tmp_path / "rows" / "train.csv")
        expected = {
            ("doctor",): 0,
            ("doctor", "--full", "--quick", "--device", "cpu"): 0,
            ("catalog", "check"): 0,
            ("status",): 0,
            ("hub",): 0,
            ("hub", "test"): 3,
            ("data", "upload", csv, "--name", "دوباره"): 0,
        }
        for words, code in expected.items():
            done = living.run(*words)
            assert done.returncode == code, (words, done.stdout, done.stderr)
    finally:
        living.close()
    assert living.far == []
    for part in ("serve --port", "kargah.compute", "doctor --full", "catalog check", "data upload"):
        assert living.was_watched(part), (part, living.lines)


def test_the_watcher_hears_what_leaves(tmp_path: Path, site_catalog: Path) -> None:
    """The same, with the network allowed: each process that asks the hub is heard."""
    living = _living(tmp_path, site_catalog, "online")
    try:
        assert living.far == []
        (tested,) = living.client.post("/api/hub/endpoints/test", {})
        assert tested["failedStep"] == "dns"
        heard = len(living.far)
        assert heard > 0
        living.client.post("/api/datasets/download/start", {"datasetId": "site/opinions"})
        until = time.monotonic() + PATIENCE_SECONDS
        while len(living.far) == heard and time.monotonic() < until:
            time.sleep(0.05)
        assert len(living.far) > heard
        assert living.was_watched("kargah.hub.worker")
        living.client.post("/api/datasets/download/cancel", {"datasetId": "site/opinions"})
        for words in (("doctor",), ("doctor", "--full", "--quick", "--device", "none"), ("hub", "test")):
            heard = len(living.far)
            living.run(*words)
            assert len(living.far) > heard, words
    finally:
        living.close()
    assert {line.split()[1] for line in living.far} == {"hub.invalid"}


def test_offline_in_the_file_holds_for_commands_too(tmp_path: Path) -> None:
    living = WatchedLiving(tmp_path / "file", hub_endpoint=FAR)
    living.home.mkdir()
    (living.home / "kargah.toml").write_text("offline = true\n", encoding="utf-8")
    for words in (("doctor",), ("catalog", "check"), ("hub", "test")):
        living.run(*words)
    assert living.far == []
    assert living.was_watched("doctor")
