"""The data sets that Kargah carries, imported at the start of a server into its data directory like any other files."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from kargah.assets.registry import Registry
from kargah.datasets.importing import import_files
from kargah.datasets.sources import SPLITS, SourceFile
from kargah.datasets.stored import DESCRIPTION, FORMAT_VERSION

SUPPORT_ID = "kargah/support-fa"
_FOLDERS = {SUPPORT_ID: "support_fa"}


def load_builtin(registry: Registry) -> None:
    """Put the built-in data sets into the registry, as far as the catalog approves them and they are not there yet."""
    for dataset_id, folder in _FOLDERS.items():
        _load(registry, dataset_id, folder)


def _load(registry: Registry, dataset_id: str, folder_name: str) -> None:
    entry = registry.catalog.find("dataset", dataset_id)
    if entry is None:
        return
    with _carried(folder_name) as folder:
        files = [
            SourceFile(folder / entry.files[split], split, entry.files[split])
            for split in SPLITS
            if split in entry.files
        ]
        digest = _digest(files)
        with registry.database.read() as session:
            row = registry.find(session, "dataset", dataset_id)
        there = row is not None and row.status == "ready" and row.facts.get("carriedDigest") == digest
        if there and row is not None and (registry.folder(row) / DESCRIPTION).is_file():
            return
        task = entry.tasks[0] if entry.tasks else None
        imported = import_files(registry.home, dataset_id, files, entry.columns, task)
    with registry.database.write() as session:
        registry.put(
            session,
            "dataset",
            dataset_id,
            name=entry.name,
            source="builtin",
            status="ready",
            path=imported.path,
            size_bytes=imported.size_bytes,
            revision=imported.version,
            facts={**imported.facts, "carriedDigest": digest},
        )


@contextmanager
def _carried(folder_name: str) -> Iterator[Path]:
    with resources.as_file(resources.files("kargah.datasets.builtin").joinpath(folder_name)) as folder:
        yield folder


def _digest(files: list[SourceFile]) -> str:
    sha = hashlib.sha256(f"{FORMAT_VERSION}".encode())
    for file in files:
        sha.update(file.path.read_bytes())
    return sha.hexdigest()
