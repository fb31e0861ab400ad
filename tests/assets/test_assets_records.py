"""Records: what the tables know of assets, transfers and requests is on disk as soon as it was acknowledged."""

from pathlib import Path

import pytest
from living import BERT, HoldModel
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.assets.models import AssetRow
from kargah.assets.records import Records, Unreadable


def _records(platform: Platform) -> Records:
    return Records(platform.home.root)


def _assets(platform: Platform) -> dict[str, AssetRow]:
    return {row.id: row for row in _records(platform).assets() if isinstance(row, AssetRow)}


def test_an_asset_has_its_record_until_it_is_removed(
    platform: Platform, api: TestClient, hold_model: HoldModel
) -> None:
    hold_model()
    kept = _assets(platform)[BERT]
    with platform.database.read() as session:
        row = platform.registry.get(session, BERT)
        columns = [attribute.key for attribute in AssetRow.__mapper__.column_attrs]
        assert [getattr(kept, name) for name in columns] == [getattr(row, name) for name in columns]
    assert api.delete(f"/api/assets/{BERT}").status_code == 200
    assert BERT not in _assets(platform)


def test_checkpoints_have_none_and_long_ids_do(platform: Platform) -> None:
    long_id = "نام/" + "ی" * 150
    with platform.database.write() as session:
        for kind, asset_id in (("checkpoint", "c"), ("dataset", long_id)):
            platform.registry.put(session, kind, asset_id, name="n", source="local", status="error")
    assert "c" not in _assets(platform)
    assert _assets(platform)[long_id].status == "error"


def test_a_disk_that_refuses_is_asked_again(platform: Platform) -> None:
    folder = platform.home.root / "records" / "assets" / "dataset"
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("in the way", encoding="utf-8")

    def put(asset_id: str, status: str) -> None:
        with platform.database.write() as session:
            platform.registry.put(session, "dataset", asset_id, name="n", source="local", status=status)

    put("a", "downloading")
    put("a", "ready")
    folder.unlink()
    away.rename(folder)
    assert "a" not in _assets(platform)
    put("b", "ready")
    assert _assets(platform)["a"].status == _assets(platform)["b"].status == "ready"


def test_requests_follow_what_becomes_of_them(platform: Platform) -> None:
    asked, _ = platform.approvals.ask("model", "org/wanted", "چون")
    other, _ = platform.approvals.ask("model", "org/other", None)
    platform.approvals.decline(asked.id, "نه")
    platform.approvals.withdraw(other.id)
    (kept,) = _records(platform).requests()
    assert not isinstance(kept, Unreadable)
    assert (kept.id, kept.status, kept.reason, kept.note) == (asked.id, "declined", "چون", "نه")


def test_what_is_missing_is_written_once_and_what_is_damaged_is_told(platform: Platform) -> None:
    platform.approvals.ask("model", "org/wanted", None)
    before = {path: path.read_text(encoding="utf-8") for path in (platform.home.root / "records").rglob("*.json")}
    for path in before:
        path.unlink()
    assert platform.registry.records.catch_up(platform.database) == len(before)
    assert {path: path.read_text(encoding="utf-8") for path in before} == before
    assert platform.registry.records.catch_up(platform.database) == 0
    damaged = next(path for path in before if "requests" in path.parts)
    damaged.write_text("{", encoding="utf-8")
    (told,) = _records(platform).requests()
    assert isinstance(told, Unreadable)
    assert told.path == damaged


@pytest.mark.parametrize("name", ["assets", "transfers", "requests"])
def test_no_records_are_no_rows(tmp_path: Path, name: str) -> None:
    assert list(getattr(Records(tmp_path), name)()) == []
