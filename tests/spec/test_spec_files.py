"""Control, exit, run directory and manifests: what is written is read, and damage is found."""

import json
from pathlib import Path

import pytest

from kargah.spec.control import Exit, Outcome, Wish, read_exit, read_wish, write_exit, write_wish
from kargah.spec.layout import RunDir, checkpoint_name, checkpoint_step, write_json
from kargah.spec.manifest import FolderDamaged, digest_file, read_manifest, verify_folder, write_manifest


def test_the_wish_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    assert read_wish(path) is Wish.RUN
    for seq, wish in enumerate(Wish, start=1):
        write_wish(path, seq, wish)
        assert read_wish(path) is wish
        assert json.loads(path.read_text(encoding="utf-8"))["seq"] == seq
    assert [entry.name for entry in tmp_path.iterdir()] == ["control.json"]


@pytest.mark.parametrize("outcome", Outcome)
def test_the_exit_comes_back(tmp_path: Path, outcome: Outcome) -> None:
    path = tmp_path / "exit.json"
    assert read_exit(path) is None
    ended = Exit(outcome, 12, "COLUMN_NOT_FOUND", {"column": "متن"}, "ستونی نیست", retryable=True)
    write_exit(path, ended)
    assert read_exit(path) == ended


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    write_json(path, {"seq": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"seq": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"seq": 1}


def test_places_in_a_run_directory(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.attempt_numbers() == []
    for number in (2, 10, 1):
        run.attempt(number).root.mkdir(parents=True)
    (run.root / "attempts" / ".partial").mkdir()
    assert run.attempt_numbers() == [1, 2, 10]
    assert run.attempt(2).journal == tmp_path / "attempts" / "2" / "journal.jsonl"


def test_names_of_checkpoints() -> None:
    assert checkpoint_name(120) == "step-00000120"
    assert checkpoint_step("step-00000120") == 120
    for name in (".step-00000120.partial", "step-120", "step-0000012x", "step-000000001", "best"):
        assert checkpoint_step(name) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "نمونه").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}', encoding="utf-8")
    (folder / "نمونه" / "weights.bin").write_bytes(bytes(range(256)) * 8)
    return folder


def test_a_whole_folder_is_sound(folder: Path) -> None:
    assert write_manifest(folder, step=3) == 8 + 2048
    manifest = read_manifest(folder)
    assert manifest["step"] == 3
    assert set(manifest["files"]) == {"config.json", "نمونه/weights.bin"}
    verify_folder(folder)


@pytest.mark.parametrize("algorithm", ["sha256", "git-sha1"])
def test_a_changed_byte_is_found_by_either_digest(folder: Path, algorithm: str) -> None:
    write_manifest(folder)
    manifest = read_manifest(folder)
    weights = folder / "نمونه" / "weights.bin"
    manifest["files"]["نمونه/weights.bin"]["digest"] = digest_file(weights, algorithm)
    write_json(folder / "manifest.json", manifest)
    verify_folder(folder)
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    verify_folder(folder, digests=False)
    with pytest.raises(FolderDamaged) as damage:
        verify_folder(folder)
    assert damage.value.file == "نمونه/weights.bin"


def test_the_git_digest_is_git_s(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what is up, doc?")
    # Pro Git, 10.2 "Git Objects".
    assert digest_file(path, "git-sha1") == "git-sha1:bd9dbf5aae1a3862dd1526723246b20206e5fc37"


def test_missing_short_and_unmanifested(folder: Path) -> None:
    with pytest.raises(FolderDamaged) as damage:
        read_manifest(folder)
    assert damage.value.file == "manifest.json"
    write_manifest(folder)
    with open(folder / "config.json", "ab") as file:
        file.write(b" ")
    with pytest.raises(FolderDamaged, match="size"):
        verify_folder(folder, digests=False)
    (folder / "config.json").unlink()
    with pytest.raises(FolderDamaged, match="missing"):
        verify_folder(folder, digests=False)
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(FolderDamaged, match="JSON"):
        verify_folder(folder)
