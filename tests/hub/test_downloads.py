"""The server's side of downloads: queue, worker processes, arrival, and the stream's ending in every case."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from faults import Fault, FaultProxy
from living import BERT, NOBODY, PICKLED, Living, MakeLiving, Told, told
from starlette.testclient import TestClient
from workshop import SMALL

from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.client import ApiError
from kargah.ground.settings import Settings
from kargah.spec.manifest import read_manifest, verify_folder

PROGRESS = "/api/models/download/progress"
WEIGHTS = "model.safetensors"


def _ended_well(events: list[Told]) -> None:
    shown = [event.data["progress"] for event in events]
    assert shown == sorted(shown)
    last = events[-1].data
    assert (last["status"], last["progress"]) == ("done", 100), last
    assert last["bytesDownloaded"] == last["totalBytes"]
    assert all(event.data["status"] == "downloading" for event in events[:-1])


def _ended_with(events: list[Told], code: str) -> None:
    last = events[-1].data
    assert (last["status"], last["error"]) == ("error", code)
    assert last["message"]
    assert all(event.data["progress"] < 100 for event in events)


def _held(living: Living, asset_id: str) -> dict[str, Any]:
    return dict(next(asset for asset in living.client.get("/api/assets") if asset["id"] == asset_id))


def _refusal(living: Living, path: str, body: dict[str, str]) -> tuple[int, str]:
    with pytest.raises(ApiError) as refused:
        living.client.post(path, body)
    return refused.value.status, refused.value.code


def test_a_safetensors_model_arrives_verified(live: Living) -> None:
    _ended_well(live.fetch(BERT))
    folder = live.home / "models" / "HooshvareLab--bert-fa-base-uncased"
    (version,) = folder.iterdir()
    verify_folder(version)
    asset = _held(live, BERT)
    assert (asset["status"], asset["revision"]) == ("ready", version.name)
    assert asset["sizeBytes"] == sum(file["sizeBytes"] for file in read_manifest(version)["files"].values())
    again = live.client.post("/api/models/download/start", {"modelId": BERT})
    assert (again["started"], again["status"]) == (False, "ready")
    # A late client gets the ending, and one that has seen it no stream.
    (late,) = live.events(PROGRESS, modelId=BERT)
    _ended_well([late])
    with live.open_stream(PROGRESS, late.id, modelId=BERT) as answer:
        assert answer.status_code == 204
    assert not (live.home / "downloads" / "model--HooshvareLab--bert-fa-base-uncased").exists()


def test_pickled_weights_become_safetensors_that_load(live: Living) -> None:
    events = live.fetch(PICKLED)
    _ended_well(events)
    assert "converting" in [event.data["phase"] for event in events]
    (folder,) = (live.home / "models" / "HooshvareLab--distilbert-fa-zwnj-base").iterdir()
    assert list(folder.glob("*.bin")) == []
    verify_folder(folder)
    manifest = read_manifest(folder)
    assert manifest["needsConversion"] is False
    (original,) = manifest["converted"]["from"].values()
    assert manifest["converted"]["from"].keys() == {"pytorch_model.bin"}
    assert manifest["converted"]["to"] == WEIGHTS
    # The original's bytes are given back.
    algorithm, _, digits = original["digest"].partition(":")
    assert not (live.home / "blobs" / f"{algorithm}-{digits[:2]}" / digits).exists()
    program = "import sys; from transformers import AutoModel; print(AutoModel.from_pretrained(sys.argv[1]).dtype)"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert "torch.float32" in done.stdout, done.stderr


def test_a_pickle_that_runs_code_is_refused_and_never_run(live: Living, tiny: Path) -> None:
    _ended_with(live.fetch("site/evil"), "UNSAFE_WEIGHTS")
    assert not (tiny / "victim").exists()
    asset = _held(live, "site/evil")
    assert (asset["status"], asset["error"]) == ("error", "UNSAFE_WEIGHTS")
    assert not (live.home / "models" / "site--evil").exists()
    # What it left behind goes when the failed asset is deleted.
    pickle = (tiny / "models" / "site" / "evil" / "pytorch_model.bin").read_bytes()
    assert pickle in [path.read_bytes() for path in live.home.glob("blobs/*/*") if path.is_file()]
    live.client.delete("/api/assets/site/evil")
    assert pickle not in [path.read_bytes() for path in live.home.glob("blobs/*/*") if path.is_file()]
    assert not (live.home / "downloads" / "model--site--evil").exists()


def test_a_repository_that_is_not_there(live: Living) -> None:
    _ended_with(live.fetch("site/absent"), "REPO_NOT_FOUND")
    fa = httpx.get(f"{live.url}{PROGRESS}", params={"modelId": "site/absent"}, headers={"Accept-Language": "fa"})
    (event,) = told(iter(fa.text.split("\n")))
    assert "مخزن" in event.data["message"]


def test_a_data_set_of_the_hub_becomes_readable_rows(live: Living) -> None:
    _ended_well(live.fetch("site/opinions", "dataset"))
    found = live.client.get("/api/datasets/site/opinions/rows", split="validation", limit=3)
    assert found["total"] == 30
    assert [set(row) for row in found["rows"]] == [{"متن", "برچسب", "ثابت"}] * 3
    about = live.client.get("/api/datasets/site%2Fopinions")
    assert about["mapping"] == {"text": "متن", "label": "برچسب"}
    assert {split["name"]: split["numRows"] for split in about["splits"]} == {"train": 90, "validation": 30}


Opened = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path, site_catalog: Path) -> Opened:
    """A server in this process whose transfers lose patience soon."""

    @contextmanager
    def make(endpoint: str, **settings: Any) -> Iterator[TestClient]:
        chosen = Settings(home=tmp_path / "home", catalog=site_catalog, hub_endpoint=(endpoint,), **settings)
        application = Application(Platform(chosen, SMALL))
        with TestClient(application.asgi, base_url="http://127.0.0.1", headers={"Accept-Language": "en"}) as api:
            yield api

    return make


def _fetch(api: TestClient, asset_id: str) -> list[Told]:
    assert api.post("/api/models/download/start", json={"modelId": asset_id}).status_code == 200
    return list(told(iter(api.get(PROGRESS, params={"modelId": asset_id}).text.split("\n"))))


def test_offline_nothing_is_begun(opened: Opened, model_hub: str) -> None:
    with opened(model_hub, offline=True) as api:
        answer = api.post("/api/models/download/start", json={"modelId": BERT})
        assert (answer.status_code, answer.json()["error"]) == (409, "OFFLINE")
        assert api.get(PROGRESS, params={"modelId": BERT}).status_code == 404


def test_no_hub_answers(opened: Opened) -> None:
    with opened(NOBODY) as api:
        _ended_with(_fetch(api, BERT), "HUB_UNREACHABLE")


def test_damaged_bytes_never_become_ready_and_a_later_try_succeeds(opened: Opened, model_hub: str) -> None:
    with FaultProxy(model_hub, Fault(on=WEIGHTS, flip_at=5000)) as proxy, opened(proxy.url) as api:
        _ended_with(_fetch(api, BERT), "CHECKSUM_MISMATCH")
        proxy.faults.clear()
        _ended_well(_fetch(api, BERT))


def test_bodies_a_start_cannot_have(opened: Opened) -> None:
    with opened(NOBODY) as api:
        for body in ({}, {"modelId": 3}, {"modelId": ""}, {"modelId": "a/b/c"}, {"modelId": BERT, "force": True}, []):
            answer = api.post("/api/models/download/start", json=body)
            assert (answer.status_code, answer.json()["error"]) == (400, "VALIDATION_FAILED"), body
        for step in ("pause", "resume", "cancel"):
            answer = api.post(f"/api/models/download/{step}", json={"modelId": BERT})
            assert (answer.status_code, answer.json()["error"]) == (409, "INVALID_STATE")


def test_what_the_catalog_says_is_too_large_is_refused_at_once(
    opened: Opened, site_catalog: Path, tmp_path: Path
) -> None:
    text = site_catalog.read_text(encoding="utf-8").replace(
        'name = "absent"', 'name = "absent"\nsizeBytes = 10_000_000_000_000_000'
    )
    huge = tmp_path / "huge.toml"
    huge.write_text(text, encoding="utf-8")
    application = Application(Platform(Settings(home=tmp_path / "home", catalog=huge, hub_endpoint=(NOBODY,))))
    with TestClient(application.asgi, base_url="http://127.0.0.1") as api:
        answer = api.post("/api/models/download/start", json={"modelId": "site/absent"})
    assert (answer.status_code, answer.json()["error"]) == (507, "DISK_FULL")
    assert answer.json()["details"]["neededBytes"] > 10**16


def test_pause_resume_cancel_and_begin_again(make_living: MakeLiving, model_hub: str) -> None:
    with FaultProxy(model_hub, Fault(on=WEIGHTS, slow_bytes_per_second=30_000)) as proxy:
        living = make_living(hub_endpoint=proxy.url)
        body = {"modelId": BERT}
        begun = living.client.post("/api/models/download/start", body)
        living.follow(PROGRESS, lambda data: data["bytesDownloaded"] > 15_000, modelId=BERT)
        living.client.post("/api/models/download/pause", body)
        paused = living.follow(PROGRESS, lambda data: data["phase"] == "paused", modelId=BERT)
        assert paused[-1].data["status"] == "downloading"
        assert living.client.post("/api/models/download/pause", body)["phase"] == "paused"
        assert _held(living, BERT)["status"] == "downloading"
        asked = len(proxy.requests)
        # At once: the thread of the paused download may not be gone yet.
        living.client.post("/api/models/download/resume", body)
        living.client.post("/api/models/download/pause", body)
        living.follow(PROGRESS, lambda data: data["phase"] == "paused", modelId=BERT)
        proxy.faults.clear()
        assert living.client.post("/api/models/download/resume", body)["downloadId"] == begun["downloadId"]
        events = living.events(PROGRESS, modelId=BERT)
        _ended_well(events)
        assert events[-1].data["resumedBytes"] > 15_000
        assert len(proxy.requests) > asked
        for step in ("pause", "resume", "cancel"):
            assert _refusal(living, f"/api/models/download/{step}", body) == (409, "INVALID_STATE")

        proxy.faults.append(Fault(on="pytorch_model.bin", slow_bytes_per_second=30_000))
        body = {"modelId": PICKLED}
        first = living.client.post("/api/models/download/start", body)
        living.follow(PROGRESS, lambda data: data["bytesDownloaded"] > 15_000, modelId=PICKLED)
        watching: list[list[Told]] = []
        watcher = threading.Thread(target=lambda: watching.append(living.events(PROGRESS, modelId=PICKLED)))
        watcher.start()
        living.client.post("/api/models/download/cancel", body)
        _ended_with(living.events(PROGRESS, modelId=PICKLED), "CANCELLED")
        watcher.join()
        assert watching[0][-1] == living.events(PROGRESS, modelId=PICKLED)[-1]
        assert _refusal(living, "/api/models/download/cancel", body) == (409, "INVALID_STATE")
        assert _held(living, PICKLED)["error"] == "CANCELLED"
        # Its bytes stay for a later try until the asset is deleted.
        assert list(living.home.glob("blobs/parts/*.part"))
        second = living.client.post("/api/models/download/start", body)
        assert second["downloadId"] != first["downloadId"]
        living.client.post("/api/models/download/cancel", body)
        _ended_with(living.events(PROGRESS, modelId=PICKLED), "CANCELLED")
        freed = living.client.delete(f"/api/assets/{PICKLED}")["freedBytes"]
        assert freed > 10_000
        assert not list(living.home.glob("blobs/parts/*.part"))


def test_many_starts_make_one_transfer(make_living: MakeLiving, model_hub: str) -> None:
    with FaultProxy(model_hub, Fault(on=WEIGHTS, slow_bytes_per_second=60_000)) as proxy:
        living = make_living(hub_endpoint=proxy.url)
        answers: list[dict[str, Any]] = []
        start = threading.Barrier(6)

        def ask() -> None:
            start.wait()
            answer = httpx.post(f"{living.url}/api/models/download/start", json={"modelId": BERT}, trust_env=False)
            answers.append(answer.json()["data"])

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer["started"] for answer in answers) == [False] * 5 + [True]
        assert len({answer["downloadId"] for answer in answers}) == 1
        assert {answer["status"] for answer in answers} == {"downloading"}
        _ended_well(living.events(PROGRESS, modelId=BERT))
        assert len(proxy.file_requests(WEIGHTS)) == 1


def test_kill_of_worker_and_of_server_in_the_middle(make_living: MakeLiving, model_hub: str) -> None:
    """The bytes stand still at two places until somebody is killed; the stream is one through all of it."""
    stands = [Fault(on=WEIGHTS, stall_after=30_000, stall_seconds=600, times=1) for _ in range(2)]
    with FaultProxy(model_hub, *stands) as proxy:
        living = make_living(hub_endpoint=proxy.url)
        seen: list[dict[str, Any]] = []
        begun = living.client.post("/api/models/download/start", {"modelId": BERT})
        follower = threading.Thread(target=lambda: seen.extend(living.client.stream(PROGRESS, modelId=BERT)))
        follower.start()
        living.follow(PROGRESS, lambda data: data["bytesDownloaded"] > 25_000, modelId=BERT)
        assert living.process is not None
        (worker,) = psutil.Process(living.process.pid).children()
        worker.send_signal(signal.SIGKILL)
        at = living.follow(PROGRESS, lambda data: data["bytesDownloaded"] > 55_000, modelId=BERT)[-1].data
        (worker,) = psutil.Process(living.process.pid).children()
        living.kill()
        worker.wait(30)
        living.start()
        again = living.client.post("/api/models/download/start", {"modelId": BERT})
        assert again["downloadId"] == begun["downloadId"]
        follower.join(60)
        shown = [data["progress"] for data in seen]
        assert shown == sorted(shown)
        assert {data["downloadId"] for data in seen} == {begun["downloadId"]}
        assert (seen[-1]["status"], seen[-1]["progress"]) == ("done", 100)
        assert [data["status"] for data in seen].count("done") == 1
        assert seen[-1]["resumedBytes"] >= at["bytesDownloaded"]
        # Nothing that was written was fetched again; what was on the wire may have been.
        total = next(file["sizeBytes"] for name, file in _files(living).items() if name == WEIGHTS)
        assert proxy.file_bytes(WEIGHTS) < total + 2 * 65_536
    (late,) = living.events(PROGRESS, modelId=BERT)
    _ended_well([late])
    with living.open_stream(PROGRESS, late.id, modelId=BERT) as answer:
        assert answer.status_code == 204


def _files(living: Living) -> dict[str, Any]:
    (folder,) = (living.home / "models" / "HooshvareLab--bert-fa-base-uncased").iterdir()
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"])


def test_a_server_that_is_told_to_go_ends_streams_and_goes_on_later(make_living: MakeLiving, model_hub: str) -> None:
    with FaultProxy(model_hub, Fault(on=WEIGHTS, stall_after=30_000, stall_seconds=600, times=1)) as proxy:
        living = make_living(hub_endpoint=proxy.url)
        begun = living.client.post("/api/models/download/start", {"modelId": BERT})
        lines: list[str] = []
        with living.open_stream(PROGRESS, modelId=BERT) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if line.startswith("data: ") and json.loads(line[6:])["bytesDownloaded"] > 25_000 and living.process:
                    living.process.send_signal(signal.SIGTERM)
        assert any(line.startswith(": the server is restarting") for line in lines)
        assert living.process is not None
        assert living.process.wait(60) in (0, -signal.SIGTERM)
        living.start()
        events = living.events(PROGRESS, modelId=BERT)
        _ended_well(events)
        assert events[-1].data["downloadId"] == begun["downloadId"]
