"""Files of checkpoints on their way out: the zip and its length, single files and parts of them, the model card."""

import hashlib
import io
import json
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient
from test_run_checkpoints import FILES, put_checkpoint
from test_run_states import put_run

from kargah.app.platform import Platform
from kargah.runs import checkpoint_files
from kargah.runs.checkpoint_files import part_of, zip_bytes
from kargah.runs.states import RunState
from kargah.spec.layout import checkpoint_name, write_json
from kargah.spec.manifest import verify_folder, write_manifest

BIG = FILES["model.safetensors"]


@pytest.fixture
def quiet(platform: Platform) -> Platform:
    """A platform whose supervisor looks only when it is told to."""
    platform.supervisor.stop()
    return platform


@pytest.fixture
def checkpoint(quiet: Platform) -> str:
    """A checkpoint of a finished run."""
    return put_checkpoint(quiet, put_run(quiet, RunState.COMPLETED, name="نخست"), 10, best=True)


def _folder(platform: Platform, checkpoint_id: str) -> Path:
    with platform.database.read() as session:
        return platform.registry.folder(platform.checkpoints.get(session, checkpoint_id))


def _download(api: TestClient, checkpoint_id: str, headers: dict[str, str] | None = None, **params: Any) -> Any:
    return api.get(f"/api/training/checkpoints/{checkpoint_id}/download", params=params, headers=headers)


def test_the_zip_holds_a_model_that_can_be_verified(
    quiet: Platform, api: TestClient, checkpoint: str, tmp_path: Path
) -> None:
    for training in (False, True):
        answer = _download(api, checkpoint, training=training)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert "filename*=UTF-8''%D8%A7" in answer.headers["content-disposition"]
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        model = {"config.json", "model.safetensors", "tokenizer.json", "spec.json", "README.md", "manifest.json"}
        assert set(archive.namelist()) == model | ({"optimizer.pt", "rng_state.pth"} if training else set())
        place = tmp_path / str(training)
        archive.extractall(place)
        verify_folder(place)
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        assert (manifest["step"], manifest["labels"]) == (10, ["بد", "خوب"])
        for name in {*FILES} & {*archive.namelist()}:
            assert archive.read(name) == FILES[name]
    head = api.head(f"/api/training/checkpoints/{checkpoint}/download")
    assert head.content == b""
    assert int(head.headers["content-length"]) == len(_download(api, checkpoint).content)


def test_a_deletion_meanwhile_cuts_nothing_short(quiet: Platform, api: TestClient, checkpoint: str) -> None:
    _, archive = quiet.checkpoints.archive(checkpoint, "fa", training=True)
    part = quiet.checkpoints.file(checkpoint, "model.safetensors")
    assert api.delete(f"/api/training/checkpoints/{checkpoint}").status_code == 200
    assert not _leftovers(quiet)
    content = b"".join(archive)
    archive.close()
    assert len(content) == archive.size_bytes
    assert zipfile.ZipFile(io.BytesIO(content)).read("model.safetensors") == BIG
    assert b"".join(checkpoint_files.read_part(part.file, 5, len(BIG))) == BIG[5:]
    part.file.close()


def _leftovers(platform: Platform) -> list[Path]:
    return [path for path in platform.home.runs.rglob("*") if "checkpoints/" in str(path)]


def test_files_are_let_go_however_the_sending_ends(quiet: Platform, api: TestClient, checkpoint: str) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for params in ({}, {"training": True}, {"file": "config.json"}, {"file": "absent"}):
        _download(api, checkpoint, **params)
        _download(api, checkpoint, {"Range": "bytes=99999999-"}, **params)
        api.head(f"/api/training/checkpoints/{checkpoint}/download", params=params)
    (_folder(quiet, checkpoint) / "model.safetensors").write_bytes(b"short")
    _download(api, checkpoint)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_damage_is_told_before_the_first_byte(quiet: Platform, api: TestClient, checkpoint: str) -> None:
    folder = _folder(quiet, checkpoint)
    (folder / "model.safetensors").write_bytes(BIG[:-1])
    for params in ({}, {"file": "model.safetensors"}):
        answer = _download(api, checkpoint, **params)
        assert (answer.status_code, answer.json()["error"]) == (409, "MODEL_DAMAGED")
        assert "model.safetensors" in answer.json()["message"]
    assert _download(api, checkpoint, file="config.json").status_code == 200
    (folder / "model.safetensors").unlink()
    assert _download(api, checkpoint).json()["error"] == "MODEL_DAMAGED"


def test_a_part_of_a_file(api: TestClient, checkpoint: str) -> None:
    whole = _download(api, checkpoint, file="model.safetensors")
    assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, BIG, "bytes")
    etag = whole.headers["etag"]
    assert etag == f'"sha256:{hashlib.sha256(BIG).hexdigest()}"'
    end = len(BIG)
    for asked, first, last in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        (f"bytes={end - 1}-", end - 1, end),
        ("bytes=100-999999999", 100, end),
        ("bytes=-7", end - 7, end),
        ("bytes=-999999999", 0, end),
    ):
        answer = _download(api, checkpoint, {"Range": asked}, file="model.safetensors")
        assert answer.status_code == 206, asked
        assert answer.content == BIG[first:last]
        assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{end}"
        assert int(answer.headers["content-length"]) == last - first
    for asked in ("bytes=5-4", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "5-9"):
        answer = _download(api, checkpoint, {"Range": asked}, file="model.safetensors")
        assert (answer.status_code, answer.content) == (200, BIG), asked
    for asked in (f"bytes={end}-", "bytes=-0", f"bytes={10**17}-"):
        answer = _download(api, checkpoint, {"Range": asked}, file="model.safetensors")
        assert (answer.status_code, answer.json()["error"]) == (416, "RANGE_NOT_SATISFIABLE"), asked
        assert answer.headers["content-range"] == f"bytes */{end}"
    same = _download(api, checkpoint, {"Range": "bytes=9-", "If-Range": etag}, file="model.safetensors")
    assert (same.status_code, same.content) == (206, BIG[9:])
    for other in ('"sha256:0"', f"W/{etag}", "Tue, 01 Jan 2030 00:00:00 GMT"):
        answer = _download(api, checkpoint, {"Range": "bytes=9-", "If-Range": other}, file="model.safetensors")
        assert (answer.status_code, answer.content) == (200, BIG), other
    head = api.head(f"/api/training/checkpoints/{checkpoint}/download", params={"file": "model.safetensors"})
    assert (head.status_code, head.headers["etag"], head.headers["content-length"]) == (200, etag, str(end))


def test_only_what_the_manifest_names_is_given(quiet: Platform, api: TestClient, checkpoint: str) -> None:
    folder = _folder(quiet, checkpoint)
    (folder / "stray.txt").write_text("x")
    manifest = _download(api, checkpoint, file="manifest.json")
    assert manifest.content == (folder / "manifest.json").read_bytes()
    for name in ("stray.txt", "../../spec.json", "/etc/passwd", "absent", "README.md", ".", "a\x00b", "ا/ب"):
        answer = _download(api, checkpoint, file=name)
        assert (answer.status_code, answer.json()["error"]) == (404, "FILE_NOT_FOUND"), name
    # A manifest that somebody wrote over cannot lead out of the folder either.
    value = json.loads((folder / "manifest.json").read_text())
    value["files"]["../../../kargah.db"] = {"sizeBytes": 1, "digest": "sha256:0"}
    write_json(folder / "manifest.json", value)
    for params in ({}, {"file": "../../../kargah.db"}):
        assert _download(api, checkpoint, **params).json()["error"] == "MODEL_DAMAGED"


def test_parts_of_an_empty_file() -> None:
    assert part_of(None, 0) is None
    for asked in ("bytes=0-", "bytes=-5"):
        with pytest.raises(ValueError, match="of 0 bytes"):
            part_of(asked, 0)


def test_names_and_folders_of_any_language(quiet: Platform, api: TestClient) -> None:
    files = {"پوشه/پرونده با فاصله.json": b"{}", "config.json": b"{}", "خالی": b""}
    checkpoint_id = put_checkpoint(quiet, put_run(quiet, RunState.COMPLETED), 10, files)
    answer = _download(api, checkpoint_id)
    assert int(answer.headers["content-length"]) == len(answer.content)
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert {*files} < {*archive.namelist()}
    assert archive.testzip() is None
    one = _download(api, checkpoint_id, file="پوشه/پرونده با فاصله.json")
    assert one.content == b"{}"
    assert one.headers["content-disposition"].count("%2F") == 0
    assert _download(api, checkpoint_id, file="خالی").content == b""


@pytest.mark.parametrize("limit", [50, 600, 30_000, 32_000, 34_000, 72_000, 110_000])
@pytest.mark.parametrize("most_files", [2, 65_535])
def test_the_length_is_right_where_numbers_outgrow_32_bits(
    quiet: Platform, checkpoint: str, monkeypatch: pytest.MonkeyPatch, limit: int, most_files: int
) -> None:
    """The limits are lowered, so that what holds for gigabytes is seen with kilobytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", most_files)
    _, archive = quiet.checkpoints.archive(checkpoint, "fa", training=True)
    content = b"".join(archive)
    archive.close()
    assert len(content) == archive.size_bytes
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None


def test_a_file_of_more_than_four_gigabytes(quiet: Platform, tmp_path: Path) -> None:
    """A sparse one, and what was sent is written sparsely too."""
    size = 2**32 + 12_345
    folder = tmp_path / checkpoint_name(10)
    folder.mkdir()
    (folder / "z.json").write_bytes(b"behind")
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(size)
    entry = {"sizeBytes": size, "digest": "sha256:" + "0" * 64}
    write_manifest_of_parts(folder, {"model.safetensors": entry})
    archive = checkpoint_files.open_archive("c", folder, "# card", training=False)
    place = tmp_path / "sent.zip"
    with open(place, "wb") as file:
        for part in archive:
            if part.count(0) == len(part):
                file.seek(len(part), os.SEEK_CUR)
            else:
                file.write(part)
        sent = file.tell()
    archive.close()
    assert sent == archive.size_bytes == place.stat().st_size
    read = zipfile.ZipFile(place)
    assert read.getinfo("model.safetensors").file_size == size
    assert read.getinfo("z.json").header_offset > size
    assert read.read("z.json") == b"behind"
    assert read.read("README.md") == b"# card"


def write_manifest_of_parts(folder: Path, known: dict[str, Any]) -> None:
    """A manifest that takes the digests of huge files as given."""
    large = {name: folder / name for name in known}
    for name, path in large.items():
        path.rename(folder.parent / name)
    write_manifest(folder)
    for name in known:
        (folder.parent / name).rename(folder / name)
    value = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**value, "files": {**known, **value["files"]}})


def test_the_length_without_any_file() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w"):
        pass
    assert zip_bytes([]) == len(sink.getvalue())


def test_a_file_that_gets_shorter_while_it_is_sent_ends_the_sending(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    with open(path, "rb") as file:
        member = checkpoint_files.Member("x", 5, datetime(1970, 1, 1, tzinfo=UTC), file)
        os.truncate(path, 3)
        with pytest.raises(OSError, match="shorter"):
            list(checkpoint_files._parts(member))


def test_the_card_is_one_that_the_hub_reads(quiet: Platform, api: TestClient, hold_model: Any) -> None:
    hold_model("org/model", facts={"languages": ["fa"]})
    run_id = put_run(quiet, RunState.COMPLETED, name="نام | با <b>\nخط")
    checkpoint_id = put_checkpoint(quiet, run_id, 10)
    cards = {
        language: zipfile.ZipFile(io.BytesIO(_download(api, checkpoint_id, {"Accept-Language": language}).content))
        .read("README.md")
        .decode()
        for language in ("fa", "en")
    }
    for card in cards.values():
        _, front, body = card.split("---\n", 2)
        value = yaml.safe_load(front)
        assert value["language"] == ["fa"]
        assert (value["base_model"], value["datasets"]) == ("org/model", ["org/data"])
        assert (value["library_name"], value["pipeline_tag"]) == ("transformers", "text-classification")
        assert value["metrics"] == ["accuracy", "f1"]
        (index,) = value["model-index"]
        (result,) = index["results"]
        assert result["task"] == {"type": "text-classification"}
        assert (result["dataset"]["type"], result["dataset"]["split"]) == ("org/data", "validation")
        assert [(one["type"], one["value"]) for one in result["metrics"]] == [("accuracy", 0.5), ("f1", 0.25)]
        for fact in ("`c1`", "`v1`", "`learningRate` | `0.0003`", "بد", "`kargah` | `0.0.1`", run_id):
            assert fact in body, fact
        assert "valLoss" not in body, "it was not measured"
        assert "/models/one" not in card
        assert "نام \\| با &lt;b>" in body
        assert "\u2068" not in card
    assert "## از کجا آمده است" in cards["fa"]
    assert "## Where it comes from" in cards["en"]


def test_the_card_of_a_checkpoint_of_a_checkpoint_names_the_model_at_the_beginning(
    quiet: Platform, api: TestClient, hold_model: Any
) -> None:
    hold_model("org/model")
    first = put_checkpoint(quiet, put_run(quiet, RunState.COMPLETED, spec={"baseModel": {"id": "org/model"}}), 10)
    run_id = put_run(quiet, RunState.COMPLETED, base_model=first)
    second = put_checkpoint(quiet, run_id, 10)
    folder = _folder(quiet, second)
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    spec["baseModel"] = {"id": first, "kind": "checkpoint", "path": "/x", "revision": None}
    write_json(folder / "spec.json", spec)
    write_manifest(folder, step=10)
    card = zipfile.ZipFile(io.BytesIO(_download(api, second).content)).read("README.md").decode()
    assert yaml.safe_load(card.split("---\n", 2)[1])["base_model"] == "org/model"
    assert first in card
