"""The manifest of a checkpoint or a model folder: every file with its size and SHA-256, so damage is seen.

`manifest.json` holds `{"files": {"model.safetensors": {"sizeBytes": n, "sha256": "…"}}, …}` beside facts of its owner.
"""

import hashlib
from pathlib import Path
from typing import Any

from kargah.spec.layout import read_json, write_json

MANIFEST = "manifest.json"


class FolderDamaged(Exception):
    """A folder does not hold what its manifest says; `file` is the first one that differs."""

    def __init__(self, folder: Path, file: str, problem: str) -> None:
        super().__init__(f"{folder.name}/{file}: {problem}")
        self.file = file
        self.problem = problem


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, **facts: Any) -> int:
    """Digest every file below `folder` into its manifest, with `facts` beside. Returns the bytes of the files."""
    files = {
        path.relative_to(folder).as_posix(): {"sizeBytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"files": files, **facts})
    return sum(int(entry["sizeBytes"]) for entry in files.values())  # type: ignore[call-overload]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`. Raises `FolderDamaged` when it is missing or cannot be read."""
    try:
        value = read_json(folder / MANIFEST)
    except ValueError as error:
        raise FolderDamaged(folder, MANIFEST, "is not JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        raise FolderDamaged(folder, MANIFEST, "is missing")
    return value


def verify_folder(folder: Path, *, digests: bool = True) -> None:
    """Hold `folder` against its manifest: sizes always, digests unless told otherwise. Raises `FolderDamaged`."""
    for name, entry in read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise FolderDamaged(folder, name, "is missing")
        if path.stat().st_size != entry["sizeBytes"]:
            raise FolderDamaged(folder, name, "has another size")
        if digests and sha256_file(path) != entry["sha256"]:
            raise FolderDamaged(folder, name, "has another digest")
