"""Imports without a network: what is understood, what is refused, and that nothing half-written stays."""

import hashlib
import io
import json
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from living import BERT, NOBODY, PICKLED
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.ground.settings import Settings
from kargah.hub.import_archive import Limits, ZipSource, open_archive
from kargah.hub.import_errors import ArchiveTooLarge, UnsafePath
from kargah.hub.import_source import FolderSource
from kargah.hub.import_survey import survey
from kargah.spec.manifest import digest_file, verify_folder

COMMIT = "c0ffee" + "0" * 34
PINNED = "site/pinned"
OPINIONS = "site/opinions"
Files = dict[str, bytes]
Send = Callable[..., httpx.Response]


@pytest.fixture
def settings(tmp_path: Path, site_catalog: Path, tiny: Path) -> Settings:
    """A catalog with one more entry, whose files are all fixed."""
    lines = [site_catalog.read_text(encoding="utf-8"), f'[[models]]\nid = "{PINNED}"\nhuggingfaceId = "{PINNED}"']
    lines += ['name = "pinned"\ndescription.fa = "ثابت"\ndescription.en = "fixed"\n[models.digests]']
    for path in sorted((tiny / "models" / BERT).iterdir()):
        lines.append(f'"{path.name}" = {{ digest = "{digest_file(path)}" }}')
    catalog = tmp_path / "catalog.toml"
    catalog.write_text("\n".join(lines), encoding="utf-8")
    return Settings(home=tmp_path / "home", catalog=catalog, hub_endpoint=(NOBODY,), offline=True)


@pytest.fixture
def bert(tiny: Path) -> Files:
    return _files(tiny / "models" / BERT)


@pytest.fixture
def send(api: TestClient, platform: Platform) -> Iterator[Send]:
    """Sends one archive (bytes) or the files of a folder; afterwards nothing may be left over."""

    def give(content: bytes | Files, name: str = "stick.zip", kind: str = "model", **fields: str) -> httpx.Response:
        parts = {name: content} if isinstance(content, bytes) else content
        return api.post(f"/api/{kind}s/import", data=fields, files=[("file", part) for part in parts.items()])

    yield give
    platform.imports.stop()
    assert list((platform.home.root / "imports").iterdir()) == []
    assert [path for path in platform.home.blobs.rglob("*") if path.is_file() and path.stat().st_nlink == 1] == []


def _files(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _zip(files: Files, *, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _tar(files: Files, links: dict[str, str] | None = None, mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, leads in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, leads
            archive.addfile(info)
    return packed.getvalue()


def _last(api: TestClient, asset_id: str, kind: str = "model") -> dict[str, Any]:
    stream = api.get(f"/api/{kind}s/download/progress", params={f"{kind}Id": asset_id})
    assert stream.status_code == 200, stream.text
    events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: ")]
    assert all(event["status"] == "downloading" for event in events[:-1])
    last: dict[str, Any] = events[-1]
    return last


def _arrived(api: TestClient, answer: httpx.Response, kind: str = "model") -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    data = answer.json()["data"]
    last = _last(api, data[f"{kind}Id"], kind)
    assert last["status"] == "done", last
    assert last["progress"] == 100
    assert last["downloadId"] == data["downloadId"]
    assets = api.get(f"/api/catalog/{kind}s").json()["data"]
    asset: dict[str, Any] = next(one for one in assets if one["id"] == data[f"{kind}Id"])
    assert asset["status"] == "ready"
    return asset


def _failed(api: TestClient, answer: httpx.Response, code: str, file: str | None = None) -> None:
    """Refused with the answer, or by the last event."""
    body = answer.json()
    if answer.status_code == 202:
        body = _last(api, body["data"]["modelId"])
    assert body["error"] == code, body
    assert body["message"]
    if file is not None:
        assert body["details"]["file"] == file, body


def _folder(platform: Platform, asset_id: str) -> Path:
    with platform.database.read() as session:
        return platform.registry.folder(platform.registry.get(session, asset_id))


def _notes(files: Files) -> Files:
    """What the hub's client leaves beside the files with `--local-dir`."""
    return {
        f".cache/huggingface/download/{name}.metadata": f"{COMMIT}\n{_etag(name, content)}\n1.0\n".encode()
        for name, content in files.items()
    }


def _etag(name: str, content: bytes) -> str:
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.mark.parametrize("top", ["", "bert-fa-base-uncased/", "usb/مدل‌ها/HooshvareLab--bert-fa-base-uncased/"])
def test_a_zip_with_any_folders_above_it(
    send: Send, api: TestClient, platform: Platform, bert: Files, top: str
) -> None:
    extra = {"__MACOSX/._config.json": b"x", f"{top}tf_model.h5": b"never wanted"}
    name = "bert-fa-base-uncased.zip" if not top else "stick.zip"
    asset = _arrived(api, send(_zip({f"{top}{name}": content for name, content in bert.items()} | extra), name))
    assert asset["id"] == BERT
    assert (asset["importedFrom"], asset["verified"]) == ("zip", "unproved")
    folder = _folder(platform, BERT)
    assert {**_files(folder), "manifest.json": b""} == {**bert, "manifest.json": b""}
    verify_folder(folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["commit"] == asset["revision"]
    assert manifest["files"]["model.safetensors"]["digest"].startswith("sha256:")
    assert manifest["files"]["config.json"]["digest"].startswith("git-sha1:")


def test_the_same_files_have_the_same_commit_however_they_come(send: Send, api: TestClient, bert: Files) -> None:
    commits = set()
    zstd = pa.BufferOutputStream()
    with pa.CompressedOutputStream(zstd, "zstd") as out:
        out.write(_tar(bert))
    ways: list[tuple[bytes | Files, str]] = [
        (_zip(bert, packing=zipfile.ZIP_STORED), "a.zip"),
        (_tar(bert), "a.tar"),
        (_tar(bert, mode="w:gz"), "a.tar.gz"),
        (zstd.getvalue().to_pybytes(), "a.tar.zst"),
        ({f"x/{name}": content for name, content in bert.items()}, ""),
    ]
    for content, name in ways:
        asset = _arrived(api, send(content, name, modelId=BERT))
        commits.add(asset["revision"])
        api.delete(f"/api/assets/{BERT}")
    assert len(commits) == 1


def test_what_is_ready_already_is_left_alone(send: Send, api: TestClient, platform: Platform, bert: Files) -> None:
    _arrived(api, send(_zip(bert), modelId=BERT))
    inode = (_folder(platform, BERT) / "model.safetensors").stat().st_ino
    again = send(_zip({"config.json": b"{}"}), modelId=BERT)
    assert again.status_code == 202
    assert again.json()["data"] | {"downloadId": ""} == {
        "modelId": BERT,
        "started": False,
        "status": "ready",
        "downloadId": "",
    }
    assert (_folder(platform, BERT) / "model.safetensors").stat().st_ino == inode


def test_a_download_under_way_goes_before(send: Send, api: TestClient, platform: Platform, bert: Files) -> None:
    with platform.database.write() as session:
        platform.transfers.begin(session, "model", BERT, "hub", {"name": BERT, "source": "HuggingFace"})
    answer = send(_zip(bert), modelId=BERT)
    assert (answer.status_code, answer.json()["error"]) == (409, "INVALID_STATE")


def test_a_cache_of_the_client_is_held_against_its_blob_names(send: Send, api: TestClient, bert: Files) -> None:
    top = "cache/models--HooshvareLab--bert-fa-base-uncased"
    blobs = {f"{top}/blobs/{_etag(name, content)}": content for name, content in bert.items()}
    links = {
        f"{top}/snapshots/{COMMIT}/{name}": f"../../blobs/{_etag(name, content)}" for name, content in bert.items()
    }
    asset = _arrived(api, send(_tar({**blobs, f"{top}/refs/main": COMMIT.encode()}, links), "a.tar"))
    assert (asset["id"], asset["revision"], asset["verified"]) == (BERT, COMMIT, "hub")
    api.delete(f"/api/assets/{BERT}")
    weights = f"{top}/blobs/{_etag('model.safetensors', bert['model.safetensors'])}"
    blobs[weights] = blobs[weights][:-1] + b"?"
    _failed(api, send(_tar(blobs, links), "a.tar"), "CHECKSUM_MISMATCH", "model.safetensors")


def test_notes_of_the_client_tell_commit_and_digests(send: Send, api: TestClient, bert: Files) -> None:
    asset = _arrived(api, send({**bert, **_notes(bert)}, modelId=BERT))
    assert (asset["revision"], asset["verified"], asset["importedFrom"]) == (COMMIT, "hub", "folder")
    api.delete(f"/api/assets/{BERT}")
    damaged = {**bert, "config.json": bert["config.json"] + b" "}
    _failed(api, send(_zip({**damaged, **_notes(bert)}), modelId=BERT), "CHECKSUM_MISMATCH", "config.json")


def test_what_another_kargah_holds(send: Send, api: TestClient, platform: Platform, bert: Files) -> None:
    first = _arrived(api, send({**bert, **_notes(bert)}, modelId=BERT))
    held = _files(_folder(platform, BERT))
    api.delete(f"/api/assets/{BERT}")
    there = {f"models/HooshvareLab--bert-fa-base-uncased/{COMMIT}/{name}": content for name, content in held.items()}
    second = _arrived(api, send(_zip(there)))
    assert (second["id"], second["revision"], second["verified"]) == (BERT, first["revision"], "manifest")
    api.delete(f"/api/assets/{BERT}")
    _failed(api, send(_zip(there), modelId=PICKLED), "IMPORT_MISMATCH")
    damaged = {
        name: content.replace(b"bert", b"BERT") if name.endswith("config.json") else content
        for name, content in there.items()
    }
    _failed(api, send(_zip(damaged)), "CHECKSUM_MISMATCH", "config.json")


def test_pinned_digests_decide(send: Send, api: TestClient, bert: Files) -> None:
    changed = {**bert, "config.json": bert["config.json"] + b"\n"}
    _failed(api, send(_zip(changed), modelId=PINNED), "CHECKSUM_MISMATCH", "config.json")
    lacking = {name: content for name, content in bert.items() if name != "tokenizer.json"}
    _failed(api, send(_zip(lacking), modelId=PINNED), "FILE_NOT_FOUND", "tokenizer.json")
    assert _arrived(api, send(_zip(bert), modelId=PINNED))["verified"] == "pinned"


def test_pickled_weights_are_converted_and_evil_ones_refused(
    send: Send, api: TestClient, platform: Platform, tiny: Path
) -> None:
    asset = _arrived(api, send(_zip(_files(tiny / "models" / PICKLED)), "distilbert-fa-zwnj-base.zip"))
    assert asset["id"] == PICKLED
    assert {path.suffix for path in _folder(platform, PICKLED).iterdir()} & {".bin", ".safetensors"} == {".safetensors"}
    _failed(api, send(_zip(_files(tiny / "models" / "site" / "evil")), modelId="site/evil"), "UNSAFE_WEIGHTS")
    assert not (tiny / "victim").exists()


def test_a_data_set_arrives_as_one_that_was_downloaded(send: Send, api: TestClient, tiny: Path) -> None:
    files = _files(tiny / "datasets" / OPINIONS)
    asset = _arrived(api, send(_zip(files), "opinions.zip", "dataset"), "dataset")
    assert asset["importedFrom"] == "zip"
    shown = api.get(f"/api/datasets/{OPINIONS}").json()["data"]
    assert [split["numRows"] for split in shown["splits"]] == [90, 30]
    assert shown["mapping"] == {"text": "متن", "label": "برچسب"}


def test_nothing_else_gets_in(send: Send, api: TestClient, bert: Files) -> None:
    for answer, code in (
        (send(_zip(bert), modelId="nobody/approved-this"), "MODEL_NOT_ALLOWED"),
        (send(_zip({"models--evil--model/snapshots/" + COMMIT + "/config.json": b"{}"})), "MODEL_NOT_ALLOWED"),
        (send(_zip(bert), kind="dataset", datasetId=BERT), "DATASET_NOT_ALLOWED"),
        (send(_zip(bert), "something.zip"), "IMPORT_UNNAMED"),
        (send(_zip({}), "empty.zip"), "IMPORT_EMPTY"),
        (send(_zip(bert), modelId="../x"), "VALIDATION_FAILED"),
        (send(_zip(bert), unknown="x"), "VALIDATION_FAILED"),
        (send(_zip(bert), commit="main"), "VALIDATION_FAILED"),
        (send(_zip(bert), digests="[]"), "VALIDATION_FAILED"),
        (send({}), "VALIDATION_FAILED"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (400, code)
    assert {one["status"] for one in api.get("/api/catalog/models").json()["data"]} <= {"available", "ready"}


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/etc/evil.json",
        "a/../../evil.json",
        "C:/evil.json",
        "a\\b.json",
        "CONFIG.json",
        "config.json/x",
    ],
)
def test_unsafe_names(send: Send, api: TestClient, platform: Platform, bert: Files, name: str) -> None:
    for archive, called in ((_zip({**bert, name: b"{}"}), "a.zip"), (_tar({**bert, name: b"{}"}), "a.tar")):
        _failed(api, send(archive, called, modelId=BERT), "UNSAFE_PATH")
    # `os.walk` does not mind that the server sweeps a folder meanwhile.
    found = [name for _, folders, names in os.walk(platform.home.root) for name in (*folders, *names)]
    assert found
    assert not [name for name in found if name.startswith("evil")]
    assert not (platform.home.root.parent / "evil.json").exists()


@pytest.mark.parametrize("leads", ["/etc/passwd", "../../outside", "nothing", "vocab.txt"])
def test_links_that_lead_out_or_to_themselves(send: Send, api: TestClient, bert: Files, leads: str) -> None:
    lacking = {name: content for name, content in bert.items() if name != "vocab.txt"}
    _failed(api, send(_tar(lacking, {"vocab.txt": leads}), "a.tar", modelId=BERT), "UNSAFE_PATH", "vocab.txt")
    info = zipfile.ZipInfo("vocab.txt")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    packed = io.BytesIO(_zip(lacking))
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(info, leads)
    _failed(api, send(packed.getvalue(), modelId=BERT), "UNSAFE_PATH", "vocab.txt")


def test_a_device_is_refused(send: Send, api: TestClient, bert: Files) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("config.json")
        info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 5
        archive.addfile(info)
    _failed(api, send(packed.getvalue(), "a.tar", modelId=BERT), "UNSAFE_PATH", "config.json")


def test_damaged_archives(send: Send, api: TestClient, bert: Files) -> None:
    whole, tarred, packed = _zip(bert), _tar(bert), _tar(bert, mode="w:gz")
    flipped = bytearray(_zip(bert, packing=zipfile.ZIP_STORED))
    place = flipped.index(bert["model.safetensors"][-64:])
    flipped[place] ^= 1
    for content, name in (
        (whole[: len(whole) // 2], "a.zip"),
        (b"PK\x03\x04 no", "a.zip"),
        (tarred[: len(tarred) // 2], "a.tar"),
        (packed[: len(packed) // 2], "a.tar.gz"),
        (packed, "a.tar.zst"),
        (b"", "a.tgz"),
        (bytes(flipped), "a.zip"),
    ):
        _failed(api, send(content, name, modelId=BERT), "ARCHIVE_DAMAGED")
        assert (
            api.get("/api/assets", params={"kind": "model", "q": BERT}).json()["data"][0]["error"] == "ARCHIVE_DAMAGED"
        )


def test_a_password_and_a_name_that_stands_twice(send: Send, api: TestClient, bert: Files) -> None:
    locked = bytearray(_zip(bert))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = locked.index(signature)
        locked[place + offset] |= 1
    _failed(api, send(bytes(locked), modelId=BERT), "ARCHIVE_ENCRYPTED")
    packed = io.BytesIO(_zip(bert))
    with zipfile.ZipFile(packed, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", b"{}")
    _failed(api, send(packed.getvalue(), modelId=BERT), "ARCHIVE_DAMAGED", "config.json")


def test_bombs_are_refused_by_what_they_declare_and_by_what_they_hold(
    tmp_path: Path, send: Send, api: TestClient, bert: Files
) -> None:
    file = tmp_path / "bomb.zip"
    file.write_bytes(_zip({"config.json": bytes(5_000_000)}))
    with pytest.raises(ArchiveTooLarge):
        ZipSource("bomb", file, Limits(10**9, ratio_from_bytes=1_000_000)).members()
    with pytest.raises(ArchiveTooLarge):
        ZipSource("bomb", file, Limits(1_000_000)).members()
    # It says that it is small, and goes on.
    lying = bytearray(_zip({**bert, "vocab.txt": bytes(2_000_000)}))
    place = lying.rindex(b"vocab.txt") - 46
    assert lying[place : place + 4] == b"PK\x01\x02"
    lying[place + 24 : place + 28] = struct.pack("<I", 10)
    _failed(api, send(bytes(lying), modelId=BERT), "ARCHIVE_DAMAGED", "vocab.txt")


def test_a_header_that_would_fill_the_memory(tmp_path: Path, send: Send, api: TestClient) -> None:
    info = tarfile.TarInfo("./PaxHeaders/x")
    info.type, info.size = tarfile.XHDTYPE, 2_000_000_000
    _failed(api, send(info.tobuf() + bytes(1024), "a.tar", modelId=BERT), "ARCHIVE_DAMAGED")


def test_an_archive_inside_is_not_opened(send: Send, api: TestClient, platform: Platform, bert: Files) -> None:
    _failed(api, send(_zip({"bert-fa-base-uncased.zip": _zip(bert)}), modelId=BERT), "FILE_NOT_FOUND", "config.json")


def test_persian_names_in_old_zips(tmp_path: Path) -> None:
    file = tmp_path / "old.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("داده‌ها/آموزش.csv", "x")
    raw = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        place = raw.index(signature) + offset
        raw[place] &= ~0x08
    file.write_bytes(raw)
    assert "داده" not in zipfile.ZipFile(file).namelist()[0]
    assert list(open_archive("old.zip", file, Limits(1000)).members()) == ["داده‌ها/آموزش.csv"]


@pytest.mark.parametrize(
    ("change", "code", "file"),
    [
        ({"config.json": None}, "FILE_NOT_FOUND", "config.json"),
        ({"model.safetensors": None}, "FILE_NOT_FOUND", "model.safetensors"),
        ({"model.safetensors": None, "tf_model.h5": b"x"}, "UNSAFE_WEIGHTS", None),
        (
            {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"},
            "LFS_POINTER",
            "model.safetensors",
        ),
        ({"config.json": b'{"auto_map": {"AutoModel": "modeling.X"}}'}, "NEEDS_REMOTE_CODE", None),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'},
            "FILE_NOT_FOUND",
            "model-2.safetensors",
        ),
    ],
)
def test_what_is_no_whole_model(
    send: Send, api: TestClient, bert: Files, change: dict[str, bytes | None], code: str, file: str | None
) -> None:
    files = {name: content for name, content in {**bert, **change}.items() if content is not None}
    _failed(api, send(_zip(files), modelId=BERT), code, file)
    _failed(api, send(files, modelId=BERT), code, file)


def test_weights_that_were_cut_off_are_found_without_a_digest(send: Send, api: TestClient, bert: Files) -> None:
    files = {**bert, "model.safetensors": bert["model.safetensors"][:-100]}
    _failed(api, send(files, modelId=BERT), "CHECKSUM_MISMATCH", "model.safetensors")


def test_room_is_asked_for_first(send: Send, api: TestClient, bert: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(os.curdir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10_000))
    answer = send(_zip(bert), modelId=BERT)
    assert (answer.status_code, answer.json()["error"]) == (507, "DISK_FULL")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=200_000_000))
    _failed(api, send(_zip(bert), modelId=BERT), "DISK_FULL")


def test_a_folder_is_followed_inside_itself_alone(tmp_path: Path) -> None:
    top = tmp_path / "models--HooshvareLab--bert-fa-base-uncased"
    snapshot = top / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (top / "blobs").mkdir()
    digest = hashlib.sha256(b"weights").hexdigest()
    (top / "blobs" / digest).write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    found = survey(FolderSource(top))
    assert (found.calls_itself, found.commit, found.kind) == (BERT, COMMIT, "model")
    assert found.digests == {"model.safetensors": f"sha256:{digest}"}
    with pytest.raises(UnsafePath):
        survey(FolderSource(snapshot))
    (snapshot / "more").symlink_to(tmp_path)
    with pytest.raises(UnsafePath):
        survey(FolderSource(top))
    (snapshot / "more").unlink()
    os.mkfifo(snapshot / "pipe")
    with pytest.raises(UnsafePath):
        survey(FolderSource(top))
