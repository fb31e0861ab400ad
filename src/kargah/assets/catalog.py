"""The catalog: what is approved. Nothing else is fetched, trained on or served; `Catalog.require` is the one gate.

The package carries `catalog/models.toml` and `catalog/datasets.toml`; a site's own file (`KARGAH_CATALOG`) adds,
replaces or removes entries. The format is described in `docs/catalog.md`. Unknown facts are absent, never guessed.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
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

ID_SCHEMA: dict[str, Any] = {"pattern": HUB_ID, "minLength": 1, "maxLength": 160}
"""What a document of the API says of an id; `check_id` is what refuses another, in words."""

HubId = Annotated[str, StringConstraints(pattern=HUB_ID, max_length=160)]
Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40})$")]


class Description(BaseModel):
    """One sentence in each language."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    fa: str = Field(min_length=1)
    en: str = Field(min_length=1)

    def in_language(self, language: Language) -> str:
        """The sentence in `language`."""
        return self.fa if language == "fa" else self.en


class PinnedFile(BaseModel):
    """What a file of a repository must be."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, use_attribute_docstrings=True)

    digest: Digest
    """`sha256:` and 64 hex digits, or `git-sha1:` and 40."""
    size_bytes: int | None = Field(default=None, ge=0)


class Entry(BaseModel):
    """One approved model or data set. Names in the file are camelCase."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )

    id: HubId
    """What people, runs and the API call it."""
    huggingface_id: HubId | None = None
    """The repository on the hub."""
    kind: Kind
    """Follows from the table it stands in."""
    name: str = Field(min_length=1, max_length=200)
    """The display name."""
    tasks: tuple[str, ...] = ()
    """What it is for, in the hub's words: `text-classification`."""
    languages: tuple[str, ...] = ()
    """BCP 47 codes; `mul` for many."""
    licence: str | None = None
    """As the repository's card says, in lower case."""
    parameters: int | None = Field(default=None, gt=0)
    """The number of parameters."""
    description: Description
    """One sentence in each language."""
    architecture: str | None = None
    """The `model_type` of the model's config."""
    gated: bool = False
    """Whether the hub asks for acceptance of terms first."""
    revision: str | None = Field(default=None, min_length=1)
    """A commit, branch or tag."""
    size_bytes: int | None = Field(default=None, gt=0)
    """The size of what is downloaded."""
    digests: dict[str, PinnedFile] = {}
    """What a file must be, by its path in the repository."""
    columns: dict[str, str] = {}
    """Role (`text`, `textPair`, `label`) to column of a data set."""
    labels: tuple[str, ...] = ()
    """The labels of a data set, in order."""
    files: dict[Literal["train", "validation", "test"], str] = {}
    """Split of a data set to path in the repository."""
    source: Literal["HuggingFace", "builtin"] = "HuggingFace"
    """Where it comes from."""

    @property
    def repo_id(self) -> str:
        """The repository's id on a hub."""
        return self.huggingface_id or self.id


class ModelEntry(Entry):
    """An entry as it stands in a file's table `models`."""

    kind: Literal["model"] = "model"
    """Follows from the table it stands in."""


class DatasetEntry(Entry):
    """An entry as it stands in a file's table `datasets`."""

    kind: Literal["dataset"] = "dataset"
    """Follows from the table it stands in."""


class SiteFile(BaseModel):
    """A site's own catalog file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    remove: tuple[str, ...] = ()
    """Ids of entries that are not wanted here."""
    models: tuple[ModelEntry, ...] = ()
    """Approved models."""
    datasets: tuple[DatasetEntry, ...] = ()
    """Approved data sets."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in a catalog file. `entry` and `field` are `-` where it is the file as a whole.

    `kind` is pydantic's kind of error or one of this module's own, `text` says it in English.
    """

    file: str
    entry: str
    field: str
    kind: str
    text: str
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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


@dataclass(frozen=True)
class Reading:
    """What was found in the catalog's files: the good entries, where each stands, and all that is wrong."""

    catalog: Catalog
    origins: Mapping[tuple[str, str], str]
    """Kind and id to the file the entry stands in."""
    problems: tuple[Problem, ...]


def load_catalog(site_file: Path | None = None) -> Catalog:
    """The package's catalog and the site's. Raises `CatalogInvalid` with file, entry and field of the first problem."""
    reading = read_catalog(site_file)
    if reading.problems:
        first = reading.problems[0]
        raise CatalogInvalid(file=first.file, entry=first.entry, field=first.field, problem=first.text)
    return reading.catalog


def read_catalog(site_file: Path | None = None) -> Reading:
    """The package's catalog and the site's, with every problem of every entry instead of an end at the first."""
    reader = _Reader()
    folder = resources.files("kargah.assets").joinpath("catalog")
    for name in ("models.toml", "datasets.toml"):
        reader.add(folder.joinpath(name).read_text(encoding="utf-8"), name, replace=False)
    if site_file is not None:
        try:
            text = site_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reader.say(str(site_file), "-", "-", "unreadable", str(error))
        else:
            reader.add(text, str(site_file), replace=True)
    return Reading(Catalog(tuple(reader.entries.values())), reader.origins, tuple(reader.problems))


def site_file_schema() -> dict[str, Any]:
    """The JSON Schema of a site's file, for editors and for whoever writes such files by program."""
    schema = SiteFile.model_json_schema(by_alias=True)
    from_hub = {"required": ["huggingfaceId"], "properties": {"huggingfaceId": {"type": "string"}}}
    built_in = {"required": ["source"], "properties": {"source": {"const": "builtin"}}}
    for name in ("ModelEntry", "DatasetEntry"):
        schema["$defs"][name]["anyOf"] = [from_hub, built_in]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _Reader:
    """Reads file after file; a later one may replace and remove what stands in an earlier one."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}
        self.origins: dict[tuple[str, str], str] = {}
        self.problems: list[Problem] = []

    def say(self, file: str, entry: str, field: str, kind: str, text: str, **params: Any) -> None:
        self.problems.append(Problem(file, entry, field, kind, text, params))

    def add(self, text: str, file: str, *, replace: bool) -> None:
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.say(file, "-", "-", "toml", str(error))
            return
        allowed = ", ".join(sorted({"models", "datasets"} | ({"remove"} if replace else set())))
        for name in tables:
            if name not in allowed.split(", "):
                self.say(file, "-", name, "unknownTable", f"unknown; known are {allowed}", expected=allowed)
        if replace:
            self._remove(tables, file)
        seen: set[tuple[str, str]] = set()
        for table, kind in (("models", "model"), ("datasets", "dataset")):
            for number, value in enumerate(self._listed(tables, table, file), start=1):
                entry = self._entry(value, kind, file, f"{table}[{number}]")
                if entry is None:
                    continue
                key = (entry.kind, entry.id)
                if key in seen or (key in self.entries and not replace):
                    self.say(file, entry.id, "id", "twice", "stands here twice")
                    continue
                seen.add(key)
                self.entries[key] = entry
                self.origins[key] = file

    def _remove(self, tables: dict[str, Any], file: str) -> None:
        for removed in self._listed(tables, "remove", file):
            keys = [key for key in self.entries if key[1] == removed]
            if not keys:
                self.say(file, str(removed), "remove", "noSuchEntry", "no such entry")
            for key in keys:
                del self.entries[key], self.origins[key]

    def _listed(self, tables: dict[str, Any], name: str, file: str) -> list[Any]:
        value = tables.get(name, [])
        if not isinstance(value, list):
            self.say(file, "-", name, "notAList", "must be a list")
            return []
        return value

    def _entry(self, value: Any, kind: str, file: str, place: str) -> Entry | None:
        if not isinstance(value, dict):
            self.say(file, place, "-", "notATable", "must be a table")
            return None
        name = str(value.get("id", place))
        num_problems = len(self.problems)
        if value.setdefault("kind", kind) != kind:
            self.say(file, name, "kind", "wrongKind", f"must be {kind} here", expected=kind)
        entry = None
        try:
            entry = Entry.model_validate({**value, "kind": kind})
        except ValidationError as error:
            for found in error.errors():
                where = ".".join(str(part) for part in found["loc"])
                self.say(file, name, where, found["type"], found["msg"], **found.get("ctx", {}))
        if value.get("source", "HuggingFace") == "HuggingFace" and not value.keys() & {
            "huggingfaceId",
            "huggingface_id",
        }:
            self.say(file, name, "huggingfaceId", "missing", "is missing")
        return entry if len(self.problems) == num_problems else None
