"""Models and data sets that stand whole in the store and have no record: what their own files say of them."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kargah.assets.catalog import Catalog
from kargah.assets.models import AssetRow
from kargah.datasets.stored import DESCRIPTION, FolderUnreadable, describe
from kargah.ground.home import Home, folder_name
from kargah.spec.manifest import MANIFEST, FolderDamaged, read_manifest, verify_folder

_OUR_ID = re.compile("[0-9a-f]{32}")


def found_assets(home: Home, catalog: Catalog, known: set[tuple[str, str]]) -> Iterator[AssetRow]:
    """Rows for what is in the store and not among `known` (pairs of kind and id). Of several versions the newest.

    What Kargah carries itself is left to the start of the server.
    """
    found: dict[tuple[str, str], AssetRow] = {}
    for row in (*_models(home, catalog), *_datasets(home, catalog)):
        present = found.get((row.kind, row.id))
        if (row.kind, row.id) not in known and (present is None or present.created_at < row.created_at):
            found[row.kind, row.id] = row
    yield from found.values()


def _models(home: Home, catalog: Catalog) -> Iterator[AssetRow]:
    for file in home.models.glob(f"*/*/{MANIFEST}"):
        try:
            verify_folder(file.parent, digests=False)
            manifest = read_manifest(file.parent)
        except FolderDamaged:
            continue
        repo_id, commit = manifest.get("repoId"), manifest.get("commit")
        if not isinstance(repo_id, str) or not isinstance(commit, str) or file.parent.name.startswith("."):
            continue
        entry = next((one for one in catalog.of_kind("model") if repo_id in (one.id, one.repo_id)), None)
        if entry is not None and entry.source == "builtin":
            continue
        facts: dict[str, Any] = {
            name: manifest[name] for name in ("commit", "endpoint", "converted") if name in manifest
        }
        named = {"id": entry.id, "name": entry.name} if entry is not None else {"id": repo_id, "name": repo_id}
        yield _row(home, file, kind="model", source="HuggingFace", revision=commit, facts=facts, **named)


def _datasets(home: Home, catalog: Catalog) -> Iterator[AssetRow]:
    entries = {folder_name(entry.id): entry for entry in catalog.of_kind("dataset")}
    for file in home.datasets.glob(f"*/*/{DESCRIPTION}"):
        if file.parent.name.startswith("."):
            continue
        try:
            info = describe(file.parent)
            verify_folder(file.parent, digests=False)
        except (FolderUnreadable, FolderDamaged):
            continue
        folder = file.parent.parent.name
        entry = entries.get(folder)
        tasks = [info.task] if info.task else []
        facts = {"version": info.version, "task": info.task, "tasks": tasks, "numRows": info.splits}
        values = {"kind": "dataset", "revision": info.version, "facts": facts}
        if entry is not None and entry.source != "builtin":
            yield _row(home, file, id=entry.id, name=entry.name, source="HuggingFace", **values)
        elif entry is None and _OUR_ID.fullmatch(folder):
            name = str(info.sources[0].get("name", folder)) if info.sources else folder
            yield _row(home, file, id=folder, name=Path(name).stem, source="local", **values)


def _row(home: Home, file: Path, **values: Any) -> AssetRow:
    at = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    size = sum(int(one["sizeBytes"]) for one in read_manifest(file.parent)["files"].values())
    path = file.parent.relative_to(home.root).as_posix()
    return AssetRow(status="ready", size_bytes=size, path=path, created_at=at, downloaded_at=at, **values)
