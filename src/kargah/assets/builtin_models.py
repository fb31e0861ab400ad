"""Models that Kargah carries: put into the data directory and the registry at start, once per content."""

import hashlib
import os
import shutil
from importlib import resources
from pathlib import Path

from kargah.assets.catalog import Entry
from kargah.assets.registry import Registry
from kargah.ground.home import folder_name
from kargah.spec.manifest import write_manifest


def load_builtin_models(registry: Registry) -> None:
    """Make every built-in model of the catalog ready. Raises `OSError` (a full disk)."""
    for entry in registry.catalog.of_kind("model"):
        if entry.source == "builtin":
            with resources.as_file(resources.files("kargah.assets").joinpath("builtin", _package(entry))) as source:
                _load(registry, entry, source)


def _load(registry: Registry, entry: Entry, source: Path) -> None:
    version = _version(source)
    target = registry.home.models / folder_name(entry.id) / version
    path = str(target.relative_to(registry.home.root))
    with registry.database.read() as session:
        row = registry.find(session, "model", entry.id)
        if row is not None and row.status == "ready" and row.path == path and target.is_dir():
            return
    building = target.with_name(f".{version}.building")
    shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, building, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    size = write_manifest(building, repoId=entry.id, commit=version)
    os.replace(building, target)
    with registry.database.write() as session:
        registry.put(
            session,
            "model",
            entry.id,
            name=entry.name,
            source="builtin",
            status="ready",
            size_bytes=size,
            path=path,
            revision=version,
        )


def _package(entry: Entry) -> str:
    return entry.id.split("/")[-1].replace("-", "_")


def _version(source: Path) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for file in sorted(source.rglob("*")):
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts:
            digest.update(file.relative_to(source).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
