"""The catalog: what is approved. Nothing else is fetched, trained on or served; `Catalog.require` is the one gate.

The package carries `catalog/models.toml` and `catalog/datasets.toml`; a site's own file (`KARGAH_CATALOG`) adds,
replaces or removes entries. The format is described in `docs/catalog.md`. Unknown facts are absent, never guessed.
"""

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from kargah.assets.errors import CatalogInvalid, DatasetNotAllowed, ModelNotAllowed
from kargah.ground.errors import invalid
from kargah.text.languages import Language

Kind = Literal["model", "dataset"]
HUB_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"

HubId = Annotated[str, StringConstraints(pattern=HUB_ID, max_length=160)]
Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40})$")]


class Description(BaseModel):
    """One sentence in each language."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fa: str = Field(min_length=1)
    en: str = Field(min_length=1)

    def in_language(self, language: Language) -> str:
        """The sentence in `language`."""
        return self.fa if language == "fa" else self.en


class PinnedFile(BaseModel):
    """What a file of a repository must be."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)

    digest: Digest
    size_bytes: int | None = Field(default=None, ge=0)


class Entry(BaseModel):
    """One approved model or data set. Names in the file are camelCase."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    id: HubId
    huggingface_id: HubId | None = None
    kind: Kind
    name: str = Field(min_length=1, max_length=200)
    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    licence: str | None = None
    parameters: int | None = Field(default=None, gt=0)
    description: Description
    architecture: str | None = None
    gated: bool = False
    revision: str | None = Field(default=None, min_length=1)
    size_bytes: int | None = Field(default=None, gt=0)
    digests: dict[str, PinnedFile] = {}
    columns: dict[str, str] = {}
    labels: tuple[str, ...] = ()
    files: dict[Literal["train", "validation", "test"], str] = {}
    source: Literal["HuggingFace", "builtin"] = "HuggingFace"

    @property
    def repo_id(self) -> str:
        """The repository's id on a hub."""
        return self.huggingface_id or self.id


@dataclass(frozen=True)
class Catalog:
    """Approved entries by kind and id, in the order of the files."""

    entries: tuple[Entry, ...]

    def of_kind(self, kind: Kind) -> list[Entry]:
        """Entries of one kind."""
        return [entry for entry in self.entries if entry.kind == kind]

    def find(self, kind: Kind, any_id: str) -> Entry | None:
        """The entry whose id or hub id is `any_id`, or None."""
        return next((e for e in self.entries if e.kind == kind and any_id in (e.id, e.huggingface_id)), None)

    def require(self, kind: Kind, any_id: str) -> Entry:
        """The approved entry under `any_id`. Raises `ModelNotAllowed` or `DatasetNotAllowed`: nothing else gets in."""
        entry = self.find(kind, any_id)
        if entry is None:
            raise (ModelNotAllowed if kind == "model" else DatasetNotAllowed)(id=any_id)
        return entry


def check_id(field: str, value: str) -> str:
    """A hub id or one of our own ids as it was sent. Raises `ValidationFailed` when it cannot be either."""
    if len(value) > 160 or not re.fullmatch(HUB_ID, value):
        raise invalid(field, "problem.hubId")
    return value


def load_catalog(site_file: Path | None = None) -> Catalog:
    """The package's catalog and the site's. Raises `CatalogInvalid` with file, entry and field."""
    folder = resources.files("kargah.assets").joinpath("catalog")
    entries: dict[tuple[str, str], Entry] = {}
    for name in ("models.toml", "datasets.toml"):
        _add(entries, folder.joinpath(name).read_text(encoding="utf-8"), name, replace=False)
    if site_file is not None:
        try:
            text = site_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CatalogInvalid(file=str(site_file), entry="-", field="-", problem=str(error)) from error
        _add(entries, text, str(site_file), replace=True)
    return Catalog(tuple(entries.values()))


def _add(entries: dict[tuple[str, str], Entry], text: str, file: str, *, replace: bool) -> None:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogInvalid(file=file, entry="-", field="-", problem=str(error)) from error
    allowed = {"models", "datasets"} | ({"remove"} if replace else set())
    for name in tables:
        if name not in allowed:
            raise CatalogInvalid(
                file=file, entry="-", field=name, problem=f"unknown; known are {', '.join(sorted(allowed))}"
            )
    for removed in _listed(tables, "remove", file):
        keys = [key for key in entries if key[1] == removed]
        if not keys:
            raise CatalogInvalid(file=file, entry=str(removed), field="remove", problem="no such entry")
        for key in keys:
            del entries[key]
    seen: set[tuple[str, str]] = set()
    for table, kind in (("models", "model"), ("datasets", "dataset")):
        for number, value in enumerate(_listed(tables, table, file), start=1):
            entry = _entry(value, kind, file, f"{table}[{number}]")
            key = (entry.kind, entry.id)
            if key in seen or (key in entries and not replace):
                raise CatalogInvalid(file=file, entry=entry.id, field="id", problem="stands here twice")
            seen.add(key)
            entries[key] = entry


def _listed(tables: dict[str, Any], name: str, file: str) -> list[Any]:
    value = tables.get(name, [])
    if not isinstance(value, list):
        raise CatalogInvalid(file=file, entry="-", field=name, problem="must be a list")
    return value


def _entry(value: Any, kind: str, file: str, place: str) -> Entry:
    name = value.get("id", place) if isinstance(value, dict) else place
    if not isinstance(value, dict):
        raise CatalogInvalid(file=file, entry=place, field="-", problem="must be a table")
    if value.setdefault("kind", kind) != kind:
        raise CatalogInvalid(file=file, entry=str(name), field="kind", problem=f"must be {kind} here")
    try:
        entry = Entry.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CatalogInvalid(file=file, entry=str(name), field=field, problem=first["msg"]) from error
    if entry.source == "HuggingFace" and entry.huggingface_id is None:
        raise CatalogInvalid(file=file, entry=entry.id, field="huggingfaceId", problem="is missing")
    return entry
