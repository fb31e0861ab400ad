"""The snapshot: a folder with the repository's own file names, each a hard link to a blob, and a manifest beside them.

`manifest.json` holds `repoId`, `kind`, `commit`, `endpoint`, `needsConversion` and
`files: {path: {"sizeBytes", "digest"}}`.
The files are read-only and shared: whoever wants to change one writes another in its place.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from kargah.hub.blobs import BlobStore, size_of
from kargah.hub.plan import Plan
from kargah.spec.layout import fsync_folder, read_json, write_json
from kargah.spec.manifest import MANIFEST

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP})


def build_snapshot(plan: Plan, store: BlobStore, target: Path) -> None:
    """Make `target` from verified blobs: built beside it, then renamed. A complete one of the same commit stays.

    Raises `OSError`.
    """
    manifest = _manifest(plan)
    if _is_complete(target, manifest):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    folders = {building}
    for file in plan.files:
        place = building / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        folders.add(place.parent)
        _link(store.blob(file.digest), place)
    write_json(building / MANIFEST, manifest)
    for folder in folders:
        fsync_folder(folder)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(building, target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _manifest(plan: Plan) -> dict[str, Any]:
    return {
        "repoId": plan.repo_id,
        "kind": plan.kind,
        "commit": plan.commit,
        "endpoint": plan.endpoint,
        "needsConversion": plan.needs_conversion,
        "files": {file.path: {"sizeBytes": file.size_bytes, "digest": file.digest} for file in plan.files},
    }


def _is_complete(target: Path, manifest: dict[str, Any]) -> bool:
    try:
        found = read_json(target / MANIFEST)
    except (ValueError, NotADirectoryError):
        return False
    return found == manifest and all(
        size_of(target / path) == entry["sizeBytes"] for path, entry in manifest["files"].items()
    )


def _link(blob: Path, place: Path) -> None:
    try:
        os.link(blob, place)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copy2(blob, place)
