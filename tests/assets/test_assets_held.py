"""What is held: one shape, one summary, deletion that gives the space back, and the gate at every door."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from living import BERT, PICKLED, HoldModel
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.assets.schemas import Asset
from kargah.ground.ids import new_id
from kargah.ground.settings import Settings

CONTRACT = {"id", "name", "kind", "size", "sizeBytes", "status", "source", "downloadedAt"}
SHAPE = {field.alias for field in Asset.model_fields.values()}
SUPPORT = "kargah/support-fa"
Upload = Callable[..., str]


def _data(api: TestClient, path: str, **params: Any) -> Any:
    answer = api.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def _one(api: TestClient, path: str, id: str) -> dict[str, Any]:
    found = [asset for asset in _data(api, path) if asset["id"] == id]
    assert len(found) == 1
    return dict(found[0])


def test_an_asset_has_the_same_shape_in_every_list(
    api: TestClient, platform: Platform, hold_model: HoldModel, upload: Upload
) -> None:
    hold_model()
    upload([("خوب", "۱"), ("بد", "۰"), ("عالی", "۱"), ("زشت", "۰")])
    with platform.database.write() as session:
        facts = {"step": 3, "epoch": 1.5, "metrics": {"accuracy": 0.5}, "best": True, "last": False}
        platform.registry.put(
            session, "checkpoint", new_id(), name="c", source="training", status="ready", run_id="a" * 32, facts=facts
        )
    seen = 0
    for path in ("catalog/models", "catalog/datasets", "datasets", "training/assets", "assets"):
        for asset in _data(api, f"/api/{path}"):
            assert set(asset) >= CONTRACT, path
            assert set(asset) <= SHAPE, path
            Asset.model_validate(asset, by_alias=True, by_name=False)
            if asset["status"] == "available":
                assert path.startswith("catalog/")
            seen += 1
    assert seen > 40
    (checkpoint,) = _data(api, "/api/training/assets")
    assert (checkpoint["step"], checkpoint["epoch"], checkpoint["best"]) == (3, 1.5, True)
    assert checkpoint["runId"] == "a" * 32
    assert checkpoint["metrics"] == {"accuracy": 0.5}


def test_status_goes_from_available_to_downloading_to_ready(api: TestClient, platform: Platform) -> None:
    before = _one(api, "/api/catalog/models", BERT)
    assert (before["status"], before["downloadedAt"], before["source"]) == ("available", None, "HuggingFace")
    assert "progress" not in before
    with platform.database.write() as session:
        asset = {"name": "n", "source": "HuggingFace", "size_bytes": None}
        transfer = platform.transfers.begin(session, "model", BERT, "test", asset)
    platform.transfers.progress(transfer.transfer_id, total_bytes=200)
    platform.transfers.progress(transfer.transfer_id, bytes_downloaded=100)
    during = _one(api, "/api/assets", BERT)
    assert (during["status"], during["progress"], during["downloadedAt"]) == ("downloading", 50, None)
    platform.transfers.finish(transfer.transfer_id, size_bytes=2_100_000_000, revision="c0ffee")
    after = _one(api, "/api/catalog/models", BERT)
    assert (after["status"], after["size"], after["sizeBytes"]) == ("ready", "2.1 GB", 2_100_000_000)
    assert after["revision"] == "c0ffee"
    assert after["downloadedAt"].endswith("Z")
    assert "progress" not in after


def test_a_failed_asset_says_why(api: TestClient, platform: Platform) -> None:
    with platform.database.write() as session:
        transfer = platform.transfers.begin(session, "model", BERT, "test", {"name": "n", "source": "HuggingFace"})
    platform.transfers.fail(transfer.transfer_id, "HUB_UNREACHABLE")
    asset = _one(api, "/api/assets", BERT)
    assert (asset["status"], asset["error"]) == ("error", "HUB_UNREACHABLE")
    assert "progress" not in asset


def test_the_summary_counts_shared_files_once(api: TestClient, hold_model: HoldModel) -> None:
    base = api.get("/api/assets").json()["summary"]
    first, second = hold_model(), hold_model(PICKLED)
    weights = second / "model.safetensors"
    weights.unlink()
    os.link(first / "model.safetensors", weights)
    shared = weights.stat().st_size
    summary = api.get("/api/assets").json()["summary"]
    held = sum(asset["sizeBytes"] for asset in _data(api, "/api/assets"))
    assert summary["total"] == summary["ready"] == base["total"] + 2
    assert summary["sizeBytes"] == held
    assert summary["byKind"]["model"] == base["byKind"]["model"] + 2
    assert set(summary["byKind"]) == {"model", "dataset", "checkpoint"}
    on_disk = summary["diskBytes"] - base["diskBytes"]
    assert summary["sizeBytes"] - base["sizeBytes"] - shared < on_disk < summary["sizeBytes"] - base["sizeBytes"]


def test_lists_page_and_search_with_folded_letters(api: TestClient, upload: Upload) -> None:
    rows = [("a", "1"), ("b", "0"), ("c", "1"), ("d", "0")]
    ids = {upload(rows, name="كتاب‌هاي تازه"), upload(rows, name="دیگر")}
    found = _data(api, "/api/assets", q="کتابهای")
    assert [asset["name"] for asset in found] == ["كتاب‌هاي تازه"]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"kind": "dataset", "limit": 1} | ({"cursor": cursor} if cursor else {})
        body = api.get("/api/assets", params=params).json()
        seen += [asset["id"] for asset in body["data"]]
        cursor = body["page"]["next"]
        if cursor is None:
            break
    assert body["page"]["total"] == len(seen) == len(set(seen))
    assert ids <= set(seen)
    refused = api.get("/api/assets", params={"cursor": "xx"})
    assert (refused.status_code, refused.json()["error"]) == (400, "VALIDATION_FAILED")
    assert api.get("/api/assets", params={"kind": "song"}).status_code == 400


def test_deleting_gives_the_space_back_except_what_another_shares(
    api: TestClient, platform: Platform, hold_model: HoldModel
) -> None:
    shared = platform.home.blobs / "sha256-ab" / ("ab" * 32)
    own = platform.home.blobs / "sha256-cd" / ("cd" * 32)
    folders = {id: hold_model(id) for id in (BERT, PICKLED)}
    for blob, users in ((shared, folders.values()), (own, [folders[BERT]])):
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"x" * 500_000)
        for folder in users:
            os.link(blob, folder / blob.name)
    answer = api.delete(f"/api/assets/{BERT}", params={"kind": "model"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["data"]["id"], answer.json()["data"]["kind"]) == (BERT, "model")
    assert 500_000 < answer.json()["data"]["freedBytes"] < 1_000_000
    assert not folders[BERT].exists()
    assert not own.exists()
    assert shared.exists()
    held = [asset["id"] for asset in _data(api, "/api/assets", kind="model") if asset["source"] != "builtin"]
    assert held == [PICKLED]
    assert _one(api, "/api/catalog/models", BERT)["status"] == "available"
    api.delete("/api/assets/" + PICKLED.replace("/", "%2F"))
    assert not shared.exists()


def test_what_cannot_be_deleted(api: TestClient, platform: Platform, hold_model: HoldModel) -> None:
    def refusal(id: str, **params: str) -> tuple[int, str]:
        answer = api.delete(f"/api/assets/{id}", params=params)
        return answer.status_code, answer.json()["error"]

    folder = hold_model()
    assert refusal("nobody/here") == (404, "ASSET_NOT_FOUND")
    assert refusal("..") == (404, "NOT_FOUND")
    assert refusal("a b") == (400, "VALIDATION_FAILED")
    assert refusal(SUPPORT) == (409, "BUILTIN_ASSET")
    with platform.database.write() as session:
        platform.registry.hold(session, "run:abc", [("model", BERT)])
    answer = api.delete(f"/api/assets/{BERT}")
    assert (answer.status_code, answer.json()["error"]) == (409, "IN_USE")
    assert answer.json()["details"] == {"holders": ["run:abc"]}
    assert folder.is_dir()
    with platform.database.write() as session:
        platform.registry.release(session, "run:abc")
        platform.registry.put(session, "dataset", BERT, name="same id", source="local", status="ready")
        platform.registry.put(session, "model", PICKLED, name="p", source="HuggingFace", status="downloading")
    assert refusal(BERT) == (400, "VALIDATION_FAILED")
    assert refusal(PICKLED) == (409, "INVALID_STATE")
    assert api.delete(f"/api/assets/{BERT}", params={"kind": "model"}).status_code == 200
    assert not folder.exists()


@pytest.mark.parametrize("unapproved", ["evil/model", "HooshvareLab/unknown", "kargah"])
def test_what_is_not_approved_is_refused_at_every_door(
    api: TestClient, hold_model: HoldModel, upload: Upload, unapproved: str
) -> None:
    hold_model()
    opinions = upload([("خوب", "۱"), ("بد", "۰"), ("عالی", "۱"), ("زشت", "۰")])
    start = {"baseModel": BERT, "datasets": [opinions]}
    for body, code in (
        ({**start, "baseModel": unapproved}, "MODEL_NOT_ALLOWED"),
        ({**start, "baseModel": {"id": unapproved}}, "MODEL_NOT_ALLOWED"),
        ({**start, "teacherModel": unapproved}, "MODEL_NOT_ALLOWED"),
        ({**start, "datasets": [unapproved]}, "DATASET_NOT_ALLOWED"),
        ({**start, "datasets": [opinions, {"id": unapproved}]}, "DATASET_NOT_ALLOWED"),
    ):
        answer = api.post("/api/training/start", json=body)
        assert (answer.status_code, answer.json()["error"]) == (400, code)
    for kind, code in (("model", "MODEL_NOT_ALLOWED"), ("dataset", "DATASET_NOT_ALLOWED")):
        for step in ("start", "pause", "resume", "cancel"):
            answer = api.post(f"/api/{kind}s/download/{step}", json={f"{kind}Id": unapproved})
            assert (answer.status_code, answer.json()["error"]) == (400, code)
        answer = api.get(f"/api/{kind}s/download/progress", params={f"{kind}Id": unapproved})
        assert (answer.status_code, answer.json()["error"]) == (400, code)
    assert _data(api, "/api/analysis/training/jobs") == []


def test_what_was_approved_once_and_is_no_more_is_refused(
    tmp_path: Path, site_catalog: Path, settings: Settings
) -> None:
    """Held from before, or carried by the package: the catalog of now decides."""
    application = Application(Platform(settings))
    with TestClient(application.asgi, base_url="http://127.0.0.1"):
        assert application.platform.catalog.find("dataset", SUPPORT) is not None
    strict = tmp_path / "strict.toml"
    text = site_catalog.read_text(encoding="utf-8")
    removed = [SUPPORT, BERT, "kargah/mini-fa"]
    kept = text.replace('remove = ["kargah/mini-fa"]', "")
    strict.write_text(f"remove = {removed}\n{kept}".replace("'", '"'), encoding="utf-8")
    application = Application(Platform(settings.model_copy(update={"catalog": strict})))
    with TestClient(application.asgi, base_url="http://127.0.0.1") as api:
        platform = application.platform
        with platform.database.write() as session:
            platform.registry.put(
                session, "model", BERT, name="b", source="HuggingFace", status="ready", path="models/b"
            )
            platform.registry.put(
                session, "model", PICKLED, name="p", source="HuggingFace", status="ready", path="models/p"
            )
        for body, code in (
            ({"baseModel": BERT, "datasets": [SUPPORT]}, "MODEL_NOT_ALLOWED"),
            ({"baseModel": PICKLED, "datasets": [SUPPORT]}, "DATASET_NOT_ALLOWED"),
        ):
            answer = api.post("/api/training/start", json=body)
            assert (answer.status_code, answer.json()["error"]) == (400, code)


def test_built_in_data_is_there_once_and_stays_over_a_restart(settings: Settings) -> None:
    stamps = set()
    for _ in range(2):
        application = Application(Platform(settings))
        with TestClient(application.asgi, base_url="http://127.0.0.1") as api:
            asset = _one(api, "/api/datasets", SUPPORT)
            assert (asset["status"], asset["source"]) == ("ready", "builtin")
            stamps.add((asset["downloadedAt"], asset["revision"]))
    assert len(stamps) == 1
