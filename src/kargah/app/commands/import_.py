"""`kargah import`: an approved model or data set from a folder or an archive, without a network.

An archive is sent as it is. Of a folder only what is wanted is sent, file by file, and what the folder says of itself
(commit, digests) beside it. Everything is judged again by the server: it reads no path that somebody names.
"""

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import httpx
import typer

from kargah.app.commands import completing
from kargah.app.commands.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_USED_WRONGLY,
    AsJson,
    connected,
    fail,
    language,
    print_json,
    say,
    tell,
)
from kargah.app.commands.download import last_event, watch
from kargah.app.commands.uploading import sending_bar
from kargah.assets.catalog import Catalog, Description, Entry, Kind
from kargah.assets.errors import DatasetNotAllowed, ModelNotAllowed
from kargah.hub.failure import TransferFailed
from kargah.hub.import_archive import suffix_of
from kargah.hub.import_source import FolderSource, Member
from kargah.hub.import_survey import Survey, entry_of, survey
from kargah.hub.selection import select
from kargah.spec.manifest import MANIFEST
from kargah.text.messages import translate

if TYPE_CHECKING:
    from kargah.client import Client

ANSWER_SECONDS = 3600.0
"""How long the server may take to look through an archive for its name before it answers."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is sent: `files` by the names they are sent under, and the fields beside them."""

    kind: Kind
    files: dict[str, Path]
    fields: dict[str, str] = field(default_factory=dict)
    entry_id: str | None = None
    is_ready: bool = False


def import_(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=say("help.import.path"), show_default=False)],
    asset_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help=say("help.import.id"), autocompletion=completing.approved),
    ] = None,
    dataset: Annotated[bool, typer.Option("--dataset", help=say("help.import.dataset"))] = False,
    as_json: AsJson = False,
) -> None:
    """Bring an approved model or data set from a folder or an archive and wait until it is ready."""
    if not path.exists():
        fail(say("noSuchFile", path=str(path)), EXIT_USED_WRONGLY)
    if path.is_file() and suffix_of(path.name) is None:
        fail(say("importNeeds", path=str(path)), EXIT_USED_WRONGLY)
    with connected("watchingEnded") as client:
        try:
            parcel = _parcel(client, path, asset_id, "dataset" if dataset else "model")
        except (ModelNotAllowed, DatasetNotAllowed) as error:
            fail(f"{error.message(language())} [{error.code}]", EXIT_REFUSED)
        except TransferFailed as failure:
            fail(_sentence(failure.code, translate(f"error.{failure.code}", language()), failure.params), EXIT_FAILED)
        except OSError as error:
            fail(f"{error.filename or path}: {error.strerror}", EXIT_USED_WRONGLY)
        id_field, last = f"{parcel.kind}Id", None
        entry_id = parcel.entry_id
        if not parcel.is_ready:
            begun = send(client, parcel)
            entry_id = begun[id_field]
            if begun["started"]:
                events = client.stream(f"/api/{parcel.kind}s/download/progress", **{id_field: entry_id})
                last = last_event(events) if as_json else watch(events)
        held = _asset(client, parcel.kind, entry_id)
    shown = last or {id_field: entry_id, "started": False, "status": "ready", "progress": 100}
    proof = held.get("verified")
    if as_json:
        print_json({**shown, "importedFrom": held.get("importedFrom"), "verified": proof})
    if last is not None and last["status"] == "error":
        fail(_sentence(last["error"], last["message"], last.get("details")), EXIT_FAILED)
    if not as_json:
        tell(say("arrived" if last is not None else "alreadyHere", id=entry_id))
        if last is not None and proof:
            tell(say(f"import.{proof}"))


def send(client: "Client", parcel: Parcel) -> dict[str, Any]:
    """Send the files. Returns the server's `data`. Raises `ApiError`, `ServerUnreachable`, `OSError`.

    Ctrl-C before the last byte takes the import back: the connection ends, and the server keeps nothing of it.
    """
    sizes = {name: path.stat().st_size for name, path in parcel.files.items()}
    total = sum(sizes.values())
    with sending_bar(total) as show:
        bar = _Bar(total, show)
        files = [("file", (name, _Piece(path, sizes[name], bar))) for name, path in parcel.files.items()]
        try:
            timeout = httpx.Timeout(30.0, read=ANSWER_SECONDS)
            place = f"/api/{parcel.kind}s/import"
            answer = client.answer("POST", place, data=parcel.fields, files=files, timeout=timeout)
        except KeyboardInterrupt:
            if bar.is_full:
                raise
            fail(say("uploadCancelled"), EXIT_INTERRUPTED)
    data: dict[str, Any] = answer["data"]
    return data


def _parcel(client: "Client", path: Path, asset_id: str | None, kind: Kind) -> Parcel:
    if path.is_file():
        approved = _approved(client, kind)
        fields = {} if asset_id is None else {f"{kind}Id": _catalog(approved, kind).require(kind, asset_id).id}
        entry_id = next(iter(fields.values()), None)
        return Parcel(kind, {path.name: path}, fields, entry_id, entry_id is not None and _is_ready(approved, entry_id))
    source = FolderSource(path)
    found = survey(source)
    kind = found.kind or kind
    approved = _approved(client, kind)
    entry = entry_of(found, _catalog(approved, kind), kind, asset_id)
    files = {name: source.file(member) for name, member in _wanted(found, kind).items()}
    fields = {f"{kind}Id": entry.id}
    if found.proof == "hub":
        fields["digests"] = json.dumps({name: found.digests[name] for name in files if name in found.digests})
    if found.commit is not None:
        fields["commit"] = found.commit
    return Parcel(kind, files, fields, entry.id, _is_ready(approved, entry.id))


def _wanted(found: Survey, kind: Kind) -> dict[str, Member]:
    """What the server would take, and what it judges by: the code, of which it takes nothing."""
    wanted = dict(found.files)
    if kind == "model":
        chosen = set(select(kind, list(found.files)).paths)
        wanted = {name: member for name, member in wanted.items() if name in chosen or name.endswith(".py")}
    return wanted if found.manifest is None else {**wanted, MANIFEST: found.manifest}


def _approved(client: "Client", kind: Kind) -> list[dict[str, Any]]:
    approved: list[dict[str, Any]] = client.get(f"/api/catalog/{kind}s")
    return approved


def _catalog(approved: list[dict[str, Any]], kind: Kind) -> Catalog:
    """The server's catalog, as far as names go."""
    unsaid = Description.model_construct(fa="", en="")
    return Catalog(
        tuple(
            Entry.model_construct(
                id=one["id"],
                huggingface_id=one["huggingfaceId"],
                kind=kind,
                name=one["name"],
                description=unsaid,
            )
            for one in approved
        )
    )


def _is_ready(approved: list[dict[str, Any]], entry_id: str) -> bool:
    return any(one["id"] == entry_id and one["status"] == "ready" for one in approved)


def _asset(client: "Client", kind: Kind, entry_id: str | None) -> dict[str, Any]:
    return next((one for one in _approved(client, kind) if one["id"] == entry_id), {})


def _sentence(code: str, message: str, details: Any) -> str:
    file = details.get("file") if isinstance(details, dict) else None
    return f"{message} ({file}) [{code}]" if file and file not in message else f"{message} [{code}]"


class _Bar:
    """Counts bytes that were handed to the connection, of every piece."""

    def __init__(self, total: int, show: Callable[[int], None]) -> None:
        self._total = total
        self._show = show
        self._sent: dict[Path, int] = {}

    @property
    def is_full(self) -> bool:
        return sum(self._sent.values()) >= self._total

    def at(self, path: Path, sent: int) -> None:
        self._sent[path] = sent
        self._show(sum(self._sent.values()))


class _Piece:
    """A file that is open only while it is sent, for a folder may hold more of them than a process may open."""

    def __init__(self, path: Path, size: int, bar: _Bar) -> None:
        self._path = path
        self._size = size
        self._bar = bar
        self._file: BinaryIO | None = None

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if self._file is None:
            self._file = open(self._path, "rb")  # noqa: SIM115 - closed at its end
        part = self._file.read(size)
        self._bar.at(self._path, self._file.tell())
        if len(part) < size or not part:
            self._file.close()
            self._file = io.BytesIO()
        return part

    def tell(self) -> int:
        """It is asked for its length at its beginning alone."""
        return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Back to its beginning, or its length."""
        if whence == os.SEEK_END:
            return self._size
        if self._file is not None:
            self._file.close()
            self._file = None
        return offset
