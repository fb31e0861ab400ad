"""Control of downloads at the server: the queue, retry, cancel with and without the bytes, and the room on the disk."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import Fault, FaultProxy
from living import BERT, PICKLED, Living, MakeLiving
from starlette.testclient import TestClient
from workshop import SMALL

from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.assets.transfers import State
from kargah.ground.home import disk_bytes, folder_name
from kargah.ground.settings import Settings
from kargah.hub.worker_process import without_secrets

PROGRESS = "/api/models/download/progress"
WEIGHTS = "model.safetensors"
STAND = Fault(on=WEIGHTS, stall_after=30_000, stall_seconds=600)
IDS = ("site/one", "site/two", "site/three")

Opened = Callable[..., Any]


@pytest.fixture
def crowd(tmp_path: Path, tiny: Path, model_hub: str) -> Path:
    """A catalog whose three models are one and the same repository; `site/absent` is not there."""
    lines = []
    for name in (*IDS, "site/absent"):
        repo = name if name == "site/absent" else BERT
        lines.append(
            f'[[models]]\nid = "{name}"\nhuggingfaceId = "{repo}"\nname = "{name}"\n'
            'description.fa = "نمونه"\ndescription.en = "sample"\n'
        )
    file = tmp_path / "crowd.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def opened(tmp_path: Path, crowd: Path) -> Opened:
    """A server in this process whose transfers lose patience late."""

    @contextmanager
    def make(endpoint: str, transfer: Any = None, **settings: Any) -> Iterator[tuple[TestClient, Platform]]:
        chosen = Settings(**{"home": tmp_path / "home", "catalog": crowd, "hub_endpoint": (endpoint,), **settings})
        application = Application(Platform(chosen, transfer or replace(SMALL, idle_timeout_seconds=600.0)))
        with TestClient(application.asgi, base_url="http://127.0.0.1", headers={"Accept-Language": "en"}) as api:
            yield api, application.platform

    return make


def _ask(api: TestClient, step: str, asset_id: str, **more: Any) -> Any:
    answer = api.post(f"/api/models/download/{step}", json={"modelId": asset_id, **more})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()["data"]


def _refused(api: TestClient, step: str, asset_id: str, **more: Any) -> tuple[int, str]:
    answer = api.post(f"/api/models/download/{step}", json={"modelId": asset_id, **more})
    return answer.status_code, answer.json()["error"]


def _until(platform: Platform, asset_id: str, wanted: Callable[[Any], bool]) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        snapshot = platform.transfers.latest("model", asset_id)
        if snapshot is not None and wanted(snapshot):
            return snapshot
        threading.Event().wait(0.02)
    raise AssertionError(f"never: {snapshot}")


def _came(snapshot: Any) -> bool:
    return bool(snapshot.bytes_downloaded > 25_000)


def _places(api: TestClient) -> dict[str, int | None]:
    found = api.get("/api/downloads").json()["data"]
    return {one["id"]: (one.get("queue") or {}).get("position") for one in found}


def test_the_queue_shows_places_and_keeps_its_order_over_a_restart(opened: Opened, model_hub: str) -> None:
    with FaultProxy(model_hub, replace(STAND)) as proxy:
        with opened(proxy.url, parallel_downloads=1) as (api, platform):
            for asset_id in IDS:
                _ask(api, "start", asset_id)
            _until(platform, IDS[0], _came)
            assert _places(api) == {IDS[0]: None, IDS[1]: 1, IDS[2]: 2}
            # Whoever pauses goes to the end of the queue when he comes back.
            _ask(api, "pause", IDS[1])
            assert _places(api) == {IDS[0]: None, IDS[1]: None, IDS[2]: 1}
            _ask(api, "resume", IDS[1])
            assert _places(api) == {IDS[0]: None, IDS[1]: 2, IDS[2]: 1}
            assert _refused(api, "retry", IDS[1]) == (409, "INVALID_STATE")
        with opened(proxy.url, parallel_downloads=1) as (api, platform):
            _until(platform, IDS[0], lambda one: one.phase == "stalled")
            assert _places(api) == {IDS[0]: None, IDS[1]: 2, IDS[2]: 1}
            proxy.faults.clear()
            _ask(api, "retry", IDS[0])
            for asset_id in IDS:
                _until(platform, asset_id, lambda one: one.state is State.DONE)
            ended = {one: platform.transfers.latest("model", one).seq for one in IDS}
            assert sorted(IDS, key=lambda one: ended[one]) == [IDS[0], IDS[2], IDS[1]]


def test_retry_begins_again_what_ended_in_an_error(opened: Opened, model_hub: str) -> None:
    with FaultProxy(model_hub, Fault(on=WEIGHTS, status=404)) as proxy, opened(proxy.url) as (api, platform):
        assert _refused(api, "retry", IDS[0]) == (409, "INVALID_STATE")
        assert _refused(api, "retry", "evil/model") == (400, "MODEL_NOT_ALLOWED")
        first = _ask(api, "start", IDS[0])
        _until(platform, IDS[0], lambda one: one.state is State.ERROR)
        proxy.faults.clear()
        again = _ask(api, "retry", IDS[0])
        assert again["started"] is True
        assert again["downloadId"] != first["downloadId"]
        _until(platform, IDS[0], lambda one: one.state is State.DONE)
        assert _refused(api, "retry", IDS[0]) == (409, "INVALID_STATE")


def test_retry_of_one_that_a_server_made_wait(opened: Opened, model_hub: str) -> None:
    wait = Fault(on=WEIGHTS, status=429, headers={"Retry-After": "800"}, times=1)
    with FaultProxy(model_hub, wait) as proxy, opened(proxy.url) as (api, platform):
        _ask(api, "start", IDS[0])
        _until(platform, IDS[0], lambda one: one.phase == "rateLimited" and one.until)
        assert _ask(api, "retry", IDS[0])["started"] is False
        _until(platform, IDS[0], lambda one: one.state is State.DONE)


@pytest.mark.parametrize("state", ["active", "paused", "queued", "cancelled"])
def test_cancel_keeps_the_bytes_and_discard_gives_them_back(opened: Opened, model_hub: str, state: str) -> None:
    with FaultProxy(model_hub, replace(STAND)) as proxy, opened(proxy.url, parallel_downloads=1) as (api, platform):
        home = platform.home
        _ask(api, "start", IDS[0])
        _until(platform, IDS[0], _came)
        if state in ("paused", "queued"):
            _ask(api, "pause", IDS[0])
            _until(platform, IDS[0], lambda one: one.state is State.PAUSED)
        if state == "queued":
            _ask(api, "start", "site/absent")
            _until(platform, "site/absent", lambda one: one.state is State.ERROR)
            proxy.faults.append(Fault(on="/api/models/site", stall_after=0, stall_seconds=600))
            _ask(api, "start", "site/absent")
            _ask(api, "resume", IDS[0])
            assert _places(api)[IDS[0]] == 1
        if state == "cancelled":
            assert _ask(api, "cancel", IDS[0])["freedBytes"] is None
            _until(platform, IDS[0], lambda one: one.state is State.ERROR)
            assert _refused(api, "cancel", IDS[0]) == (409, "INVALID_STATE")
            assert list(home.blobs.glob("parts/*.part"))
        answer = _ask(api, "cancel", IDS[0], discard=True)
        assert answer["freedBytes"] > 25_000
        assert answer["status"] == "error"
        assert platform.transfers.latest("model", IDS[0]).error == "CANCELLED"
        assert not list(home.blobs.glob("parts/*.part"))
        assert not (home.downloads / "model--site--one").exists()
        assert _ask(api, "cancel", IDS[0], discard=True)["freedBytes"] == 0
        if state == "active":
            proxy.faults.clear()
            _ask(api, "start", IDS[0])
            assert _until(platform, IDS[0], lambda one: one.state is State.DONE).resumed_bytes == 0


def test_what_a_delete_frees_is_what_the_disk_gets_back(opened: Opened, model_hub: str) -> None:
    with FaultProxy(model_hub) as proxy, opened(proxy.url) as (api, platform):
        home = platform.home
        # Not the folder of downloads as a whole: the file of the queue in it is written when it is.
        kept = [home.models, home.blobs, *(home.downloads / f"model--{folder_name(one)}" for one in IDS)]
        for asset_id in IDS[:2]:
            _ask(api, "start", asset_id)
            _until(platform, asset_id, lambda one: one.state is State.DONE)
        (weights,) = (home.models / "site--one").glob(f"*/{WEIGHTS}")
        (others,) = (home.models / "site--two").glob(f"*/{WEIGHTS}")
        assert weights.samefile(others)
        freed = []
        for asset_id in IDS[:2]:
            before = disk_bytes(kept)
            freed.append(api.delete(f"/api/assets/{asset_id}").json()["data"]["freedBytes"])
            assert before - disk_bytes(kept) == freed[-1]
        # The shared bytes went with the second one only.
        assert freed[1] - freed[0] >= 30_000
        proxy.faults.append(replace(STAND))
        _ask(api, "start", IDS[2])
        _until(platform, IDS[2], _came)
        _ask(api, "cancel", IDS[2])
        _until(platform, IDS[2], lambda one: one.state is State.ERROR)
        before = disk_bytes(kept)
        assert before - api.delete(f"/api/assets/{IDS[2]}").json()["data"]["freedBytes"] == disk_bytes(kept)


def test_two_that_do_not_fit_together(opened: Opened, model_hub: str, tmp_path: Path, crowd: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    half = free // 2
    text = crowd.read_text(encoding="utf-8")
    for asset_id in IDS[:2]:
        text = text.replace(f'name = "{asset_id}"', f'name = "{asset_id}"\nsizeBytes = {half}')
    pinned = tmp_path / "pinned.toml"
    pinned.write_text(text, encoding="utf-8")
    transfer = replace(SMALL, idle_timeout_seconds=600.0, disk_margin_bytes=free // 8)
    # Nothing resolves, so what the catalog says is what counts.
    with FaultProxy(model_hub, Fault(on="/api/", stall_after=0, stall_seconds=600)) as proxy:
        with opened(proxy.url, transfer, catalog=pinned) as (api, platform):
            _ask(api, "start", IDS[0])
            answer = api.post("/api/models/download/start", json={"modelId": IDS[1]})
            assert (answer.status_code, answer.json()["error"]) == (507, "DISK_FULL")
            details = answer.json()["details"]
            assert details["reservedBytes"] == half
            assert details["neededBytes"] == 2 * half + free // 8 > details["freeBytes"]
            # One whose size nobody knows yet may begin; one that pauses claims nothing.
            _ask(api, "start", IDS[2])
            _ask(api, "pause", IDS[0])
            _until(platform, IDS[0], lambda one: one.state is State.PAUSED)
            _ask(api, "start", IDS[1])
            assert _refused(api, "resume", IDS[0]) == (507, "DISK_FULL")


def test_one_whose_size_the_hub_tells_is_refused_beside_another(
    opened: Opened, model_hub: str, tmp_path: Path, crowd: Path
) -> None:
    free = shutil.disk_usage(tmp_path).free
    text = crowd.read_text(encoding="utf-8").replace(
        'name = "site/absent"', f'name = "site/absent"\nsizeBytes = {free * 3 // 4}'
    )
    pinned = tmp_path / "pinned.toml"
    pinned.write_text(text, encoding="utf-8")
    transfer = replace(SMALL, idle_timeout_seconds=600.0, metadata_timeout_seconds=600.0, disk_margin_bytes=free // 5)
    with FaultProxy(model_hub, Fault(on="/api/models/site", stall_after=0, stall_seconds=600)) as proxy:
        with opened(proxy.url, transfer, catalog=pinned) as (api, platform):
            _ask(api, "start", IDS[0])
            _until(platform, IDS[0], lambda one: one.state is State.DONE)
            proxy.faults.append(replace(STAND))
            _ask(api, "start", "site/absent")
            api.delete(f"/api/assets/{IDS[0]}")
            # It has room alone, but not once the margin is as large as what the other leaves.
            platform.downloads.transfer_settings = replace(transfer, disk_margin_bytes=free // 3)
            _ask(api, "start", IDS[1])
            ended = _until(platform, IDS[1], lambda one: one.state is State.ERROR)
            assert ended.error == "DISK_FULL"
            assert ended.error_details["reservedBytes"] == free * 3 // 4


def test_old_bytes_that_nobody_wants_are_swept_and_wanted_ones_never(opened: Opened, model_hub: str) -> None:
    with FaultProxy(model_hub, replace(STAND), replace(STAND, on="pytorch_model.bin")) as proxy:
        with opened(proxy.url) as (api, platform):
            home = platform.home
            _ask(api, "start", IDS[0])
            _until(platform, IDS[0], _came)
            _ask(api, "cancel", IDS[0])
            _until(platform, IDS[0], lambda one: one.state is State.ERROR)
            (part,) = home.blobs.glob("parts/*.part")
        orphans = [home.blobs / "parts" / f"sha256-{letter * 64}.part" for letter in "ef"]
        for orphan in orphans:
            orphan.write_bytes(b"nobody's")
        fifteen_days_ago = time.time() - 15 * 86_400
        os.utime(orphans[0], (fifteen_days_ago, fifteen_days_ago))
        with opened(proxy.url) as (_, platform):
            assert platform.downloads.expire() >= 0
            # Young: a cancelled one's bytes and a fresh orphan stay.
            assert part.exists()
            assert [orphan.exists() for orphan in orphans] == [False, True]
        for path in (part, *(home.downloads / "model--site--one").iterdir()):
            os.utime(path, (fifteen_days_ago, fifteen_days_ago))
        with opened(proxy.url, keep_parts_days=30) as (api, platform):
            platform.downloads.expire()
            assert part.exists()
            # Paused: however old, it is wanted.
            _ask(api, "start", IDS[0])
            _until(platform, IDS[0], _came)
            _ask(api, "pause", IDS[0])
            _until(platform, IDS[0], lambda one: one.state is State.PAUSED)
        for path in (part, *(home.downloads / "model--site--one").iterdir()):
            os.utime(path, (fifteen_days_ago, fifteen_days_ago))
        with opened(proxy.url) as (api, platform):
            platform.downloads.expire()
            assert part.exists()
            _ask(api, "cancel", IDS[0])
            for path in (part, *(home.downloads / "model--site--one").iterdir()):
                os.utime(path, (fifteen_days_ago, fifteen_days_ago))
            assert platform.downloads.expire() > 25_000
            assert not part.exists()
            assert not (home.downloads / "model--site--one").exists()


def test_a_limit_of_bytes_is_shared_and_held(opened: Opened, model_hub: str) -> None:
    with opened(model_hub, SMALL, download_bytes_per_second=60_000) as (api, platform):
        began = time.monotonic()
        _ask(api, "start", IDS[0])
        done = _until(platform, IDS[0], lambda one: one.state is State.DONE)
        assert time.monotonic() - began >= done.total_bytes / 60_000


def test_an_upload_is_cancelled_once_and_not_paused(opened: Opened, model_hub: str) -> None:
    with opened(model_hub) as (api, _):
        rows = "text,label\n" + "".join(f"متن شمارهٔ {number},{number % 2}\n" for number in range(60_000))
        ids = []
        for name in ("نخست", "دوم"):
            answer = api.post(
                "/api/datasets/upload",
                data={"name": name, "columns": json.dumps({"text": "text", "label": "label"})},
                files={"file": ("rows.csv", rows.encode())},
            )
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["data"]["datasetId"])
        # The second waits for the first: it ends at once, with all that was received.
        cancel = {"datasetId": ids[1]}
        for step in ("pause", "resume", "retry"):
            answer = api.post(f"/api/datasets/download/{step}", json=cancel)
            assert (answer.status_code, answer.json()["error"]) == (409, "INVALID_STATE"), step
        answer = api.post("/api/datasets/download/cancel", json=cancel)
        assert answer.status_code == 202, answer.text
        assert answer.json()["data"]["freedBytes"] > len(rows.encode())
        again = api.post("/api/datasets/download/cancel", json=cancel)
        assert (again.status_code, again.json()["error"]) == (409, "INVALID_STATE")
        stream = api.get("/api/datasets/download/progress", params=cancel).text
        assert '"error":"CANCELLED"' in stream
        never = api.post("/api/datasets/download/cancel", json={"datasetId": "a" * 32})
        assert (never.status_code, never.json()["error"]) == (400, "DATASET_NOT_ALLOWED")


def test_one_that_is_approved_no_longer_ends_with_a_sentence(
    opened: Opened, model_hub: str, tmp_path: Path, crowd: Path
) -> None:
    with FaultProxy(model_hub, replace(STAND)) as proxy:
        with opened(proxy.url) as (api, platform):
            _ask(api, "start", IDS[0])
            _until(platform, IDS[0], _came)
        fewer = tmp_path / "fewer.toml"
        fewer.write_text(crowd.read_text(encoding="utf-8").replace('id = "site/one"', 'id = "site/other"'), "utf-8")
        with opened(proxy.url, catalog=fewer) as (api, _):
            event = api.get(PROGRESS, params={"modelId": IDS[0]}).text
            assert '"error":"MODEL_NOT_ALLOWED"' in event
            assert IDS[0] in event.partition('"message"')[2]


def test_why_a_download_failed_stands_in_the_log_without_secrets(
    opened: Opened, model_hub: str, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(model_hub, hub_token="hf_verysecret") as (api, platform):
        _ask(api, "start", "site/absent")
        _until(platform, "site/absent", lambda one: one.state is State.ERROR)
    assert "download of site/absent failed: REPO_NOT_FOUND: " in caplog.text
    assert "hf_verysecret" not in caplog.text
    detail = "https://user:pass@hub/a?X-Sig=abc: Bearer hf_other and hf_mine refused"
    assert without_secrets(detail, {"hf_mine"}) == "https://…hub/a?… Bearer … and … refused"


def test_a_worker_that_hears_nothing_is_killed(opened: Opened, model_hub: str) -> None:
    with FaultProxy(model_hub, replace(STAND)) as proxy, opened(proxy.url) as (api, platform):
        _ask(api, "start", IDS[0])
        _until(platform, IDS[0], _came)
        worker = next(one for one in psutil.Process().children() if "kargah.hub.worker" in one.cmdline())
        worker.send_signal(signal.SIGSTOP)
        _ask(api, "cancel", IDS[0])
        assert _until(platform, IDS[0], lambda one: one.state is State.ERROR).error == "CANCELLED"


def test_the_command(make_living: MakeLiving, model_hub: str) -> None:
    with FaultProxy(model_hub, replace(STAND)) as proxy:
        living = make_living(hub_endpoint=proxy.url)
        begun = living.run("download", BERT, "--detach")
        assert (begun.returncode, BERT in begun.stdout) == (0, True), begun.stderr
        living.follow(PROGRESS, lambda data: data["bytesDownloaded"] > 25_000, modelId=BERT)
        watching = living.spawn("download", BERT)
        living.client.get("/api/downloads")
        _interrupt_once_it_watches(living, watching)
        assert watching.wait(60) == 130
        assert BERT in living.run("downloads").stdout
        assert living.run("downloads", "pause", BERT).returncode == 0
        living.follow(PROGRESS, lambda data: data["phase"] == "paused", modelId=BERT)
        assert "paused" in living.run("downloads").stdout
        assert living.run("downloads", "resume", BERT).returncode == 0
        assert living.run("downloads", "cancel", BERT).returncode == 0
        assert living.run("download", PICKLED, "--json").returncode == 0
        gone = living.run("downloads", "cancel", BERT, "--discard", "--json")
        assert json.loads(gone.stdout)["freedBytes"] > 25_000
        refused = living.run("downloads", "cancel", BERT)
        assert (refused.returncode, "[INVALID_STATE]" in refused.stderr) == (3, True)
        proxy.faults.clear()
        assert living.run("downloads", "retry", BERT).returncode == 0
        assert living.run("download", BERT).returncode == 0
        living.terminate()
        for arguments in (("download", BERT), ("downloads",), ("downloads", "retry", BERT)):
            assert living.run(*arguments).returncode == 4


def _interrupt_once_it_watches(living: Living, watching: Any) -> None:
    """Ctrl-C as soon as the command has its connection to the server."""
    process = psutil.Process(watching.pid)
    while not any(one.raddr and one.raddr.port == living.port for one in process.net_connections()):
        assert watching.poll() is None
    watching.send_signal(signal.SIGINT)
