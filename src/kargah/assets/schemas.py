"""The asset as it crosses HTTP: one shape for models, data sets and checkpoints, approved, held or on their way."""

from typing import Any, Literal

from pydantic import Field

from kargah.assets.catalog import Entry
from kargah.assets.models import AssetRow
from kargah.ground.ids import rfc3339
from kargah.ground.web.envelope import Ok, Page, Wire
from kargah.text.languages import Language
from kargah.text.sizes import human_size

_CHECKPOINT_FACTS = ("step", "epoch", "metrics", "best", "last")


class Asset(Wire):
    """Section 2 of the contract. A checkpoint also has `runId`, `step`, `epoch`, `metrics`, `best`,
    `last`, `pinned`.

    What was brought by hand has `importedFrom` (`folder`, `zip`, `tar`) and `verified`: `pinned`, by the digests of the
    catalog; `manifest` or `hub`, by digests that came with it; `unproved`.
    """

    id: str
    name: str
    kind: Literal["model", "dataset", "checkpoint"]
    size: str | None
    size_bytes: int | None
    status: Literal["available", "downloading", "ready", "error"]
    source: Literal["HuggingFace", "local", "training", "builtin"]
    downloaded_at: str | None
    progress: int | None = None
    error: str | None = None
    licence: str | None = None
    tasks: list[str] = Field(default_factory=list)
    languages: list[str] = Field(default_factory=list)
    parameters: int | None = None
    revision: str | None = None
    description: str | None = None
    huggingface_id: str | None = None
    gated: bool | None = None
    run_id: str | None = None
    step: int | None = None
    epoch: float | None = None
    metrics: dict[str, float | None] | None = None
    best: bool | None = None
    last: bool | None = None
    pinned: bool | None = None
    created_at: str | None = None
    imported_from: str | None = None
    verified: str | None = None


class AssetSummary(Wire):
    """What is held, counted. `sizeBytes` sums the assets; `diskBytes` counts shared files once."""

    total: int
    ready: int
    size_bytes: int
    size: str
    disk_bytes: int
    by_kind: dict[str, int]


class OkAssets(Ok[list[Asset]]):
    """Everything held, with its summary."""

    summary: AssetSummary
    page: Page


def of_entry(entry: Entry, row: AssetRow | None, language: Language) -> dict[str, Any]:
    """An approved entry, with what is held of it."""
    value: dict[str, Any] = {
        "id": entry.id,
        "name": entry.name,
        "kind": entry.kind,
        "size": human_size(entry.size_bytes),
        "sizeBytes": entry.size_bytes,
        "status": "available",
        "source": entry.source,
        "downloadedAt": None,
        **_entry_facts(entry, language),
        "revision": entry.revision,
    }
    return value if row is None else {**value, **_held(row)}


def of_row(row: AssetRow, entry: Entry | None, language: Language) -> dict[str, Any]:
    """A held asset; `entry` is its place in the catalog, if it has one."""
    facts = row.facts or {}
    value: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "source": row.source,
        "licence": facts.get("licence"),
        "tasks": facts.get("tasks", []),
        "languages": facts.get("languages", []),
        "parameters": facts.get("parameters"),
        "description": facts.get("description"),
        **(_entry_facts(entry, language) if entry else {}),
        **_held(row),
    }
    if row.kind == "checkpoint":
        value["runId"] = row.run_id
        value.update({name: facts.get(name) for name in _CHECKPOINT_FACTS})
        value["pinned"] = bool(facts.get("pinned"))
    return value


def _entry_facts(entry: Entry, language: Language) -> dict[str, Any]:
    return {
        "licence": entry.licence,
        "tasks": list(entry.tasks),
        "languages": list(entry.languages),
        "parameters": entry.parameters,
        "description": entry.description.in_language(language),
        "huggingfaceId": entry.huggingface_id,
        "gated": entry.gated,
    }


def _held(row: AssetRow) -> dict[str, Any]:
    value: dict[str, Any] = {
        "size": human_size(row.size_bytes),
        "sizeBytes": row.size_bytes,
        "status": row.status,
        "downloadedAt": rfc3339(row.downloaded_at),
        "revision": row.revision,
        "createdAt": rfc3339(row.created_at),
    }
    facts = row.facts or {}
    if "importedFrom" in facts:
        value.update({name: facts.get(name) for name in ("importedFrom", "verified")})
    if row.status == "downloading":
        value["progress"] = row.progress or 0
    if row.status == "error":
        value["error"] = row.error
    return value
