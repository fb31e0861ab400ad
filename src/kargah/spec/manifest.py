"""The manifest of a checkpoint, a model or a data set: every file with its size and digest, so that damage is seen.

`manifest.json` holds `{"files": {"model.safetensors": {"sizeBytes": n, "digest": "sha256:…"}}, …}` beside facts of its
owner. A digest is `sha256:<hex>`, or `git-sha1:<hex>` for a file that came from a hub which knows it so: the SHA-1 of
`blob <size>\\0` and the bytes, as git names its contents.
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


def digest_file(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes, with its algorithm in front. Raises `OSError`, `ValueError` for an unknown one."""
    with open(path, "rb") as file:
        if algorithm == "sha256":
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if algorithm == "git-sha1":
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
            while part := file.read(1 << 20):
                digest.update(part)
            return f"git-sha1:{digest.hexdigest()}"
    raise ValueError(f"no such digest: {algorithm}")


def write_manifest(folder: Path, **facts: Any) -> int:
    """Digest every file below `folder` into its manifest, with `facts` beside. Returns the bytes of the files."""
    files = {
        path.relative_to(folder).as_posix(): {"sizeBytes": path.stat().st_size, "digest": digest_file(path)}
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
        if digests and digest_file(path, entry["digest"].partition(":")[0]) != entry["digest"]:
            raise FolderDamaged(folder, name, "has another digest")
