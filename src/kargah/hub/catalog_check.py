"""Whether the hubs still have what the catalog approves: every entry against what every endpoint says of it.

Only asks; no file is changed and nothing is fetched. An entry that is built in is left out.
"""

import fnmatch
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from kargah.assets.catalog import Entry
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import EndpointFailed, TransferFailed
from kargah.hub.job import TransferSettings
from kargah.hub.repo_info import PATIENCE, UNREACHABLE, Hub, RepoInfo, Waits
from kargah.hub.selection import check_paths, select
from kargah.text.languages import Language
from kargah.text.messages import translate

PARALLEL = 4
"""Questions at the same time, over all endpoints."""

_SILENCE = ("HUB_UNREACHABLE", "NOT_A_HUB", "PROXY_NOT_SUPPORTED")
_OF_REFUSAL = {
    "REPO_NOT_FOUND": "vanished",
    "REVISION_NOT_FOUND": "revisionGone",
    "REPO_GATED": "gated",
    "REPO_DISABLED": "disabled",
}
_OF_SELECTION = {
    "UNSAFE_WEIGHTS": "unsafeWeights",
    "NEEDS_REMOTE_CODE": "needsCode",
    "FILE_NOT_FOUND": "noFiles",
    "UNSAFE_PATH": "unsafePath",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. A `serious` one means that the entry needs a person; any other is good to know.

    Codes: `moved`, `vanished`, `disabled`, `private`, `gated`, `notGated`, `revisionGone`, `unsafeWeights`,
    `pickledWeights`, `needsCode`, `noFiles`, `unsafePath`, `fileMissing`, `digestDiffers`, `sizeDiffers`,
    `licenceDiffers`, `unreachable`.
    """

    code: str
    serious: bool
    params: dict[str, Any] = field(default_factory=dict)

    def sentence(self, language: Language) -> str:
        """What was found, for a person."""
        return translate(f"catalogCheck.finding.{self.code}", language, **self.params)


@dataclass(frozen=True, slots=True)
class EntryReport:
    """What one endpoint says of one entry. `commit` is where the entry's revision stands there."""

    entry: Entry
    endpoint: str
    findings: tuple[Finding, ...]
    commit: str | None = None

    @property
    def status(self) -> str:
        """`ok`, or the code of the weightiest finding."""
        return next((f.code for f in sorted(self.findings, key=lambda f: not f.serious)), "ok")

    @property
    def endpoint_silent(self) -> bool:
        """Whether no hub answered there at all."""
        return any(f.code == "unreachable" and f.params["cause"] in _SILENCE for f in self.findings)


def check_entries(
    entries: Sequence[Entry],
    endpoints: Sequence[Endpoint],
    stop: threading.Event,
    *,
    settings: TransferSettings = PATIENCE,
    waits: Waits | None = None,
) -> Iterator[EntryReport]:
    """A report for each entry and endpoint, as they come; to be closed (or read to the end) by whoever asks."""
    hubs = [Hub(endpoint, settings, stop, waits) for endpoint in endpoints]
    asked = [(hub, entry) for entry in entries if entry.source != "builtin" for hub in hubs]
    pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="check")
    waiting = [pool.submit(check_entry, hub, entry) for hub, entry in asked]
    try:
        for future in as_completed(waiting):
            yield future.result()
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for hub in hubs:
            hub.close()


def check_entry(hub: Hub, entry: Entry) -> EntryReport:
    """What one hub says of one entry. Raises `Stopped`."""
    findings: list[Finding] = []
    commit = None
    try:
        now = hub.info(entry.kind, entry.repo_id)
        if now.id != entry.repo_id:
            findings.append(Finding("moved", True, {"newId": now.id}))
        findings += _access(entry, now)
        pinned = now
        with_blobs = bool(entry.size_bytes or entry.digests)
        if entry.revision is not None or with_blobs:
            pinned = hub.info(entry.kind, now.id, entry.revision, with_blobs=with_blobs)
        commit = pinned.commit
        findings += file_findings(entry.kind, pinned, tuple(entry.files.values()))
        findings += _pins(entry, pinned)
        findings += _licence(entry, pinned.licences or now.licences)
    except EndpointFailed as failure:
        findings += _of_failure(entry, failure)
    return EntryReport(entry, hub.endpoint.url, tuple(findings), commit)


def file_findings(kind: str, info: RepoInfo, patterns: Sequence[str] = ()) -> list[Finding]:
    """What a download of these files would end with, or convert; `patterns` as the catalog's `files` has them."""
    if info.needs_code:
        return [Finding("needsCode", True)]
    if info.files is None or info.disabled:
        return []
    paths = [file.path for file in info.files]
    missing = [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(path, pattern) for path in paths)]
    if missing:
        return [Finding("fileMissing", True, {"file": pattern}) for pattern in missing]
    try:
        check_paths(paths)
        selection = select(kind, paths, patterns)
    except TransferFailed as failure:
        return [Finding(_OF_SELECTION[failure.code], True)]
    if kind == "model" and not any(path.endswith((".safetensors", ".bin")) for path in selection.paths):
        return [Finding("noFiles", True)]
    return [Finding("pickledWeights", False)] if selection.needs_conversion else []


def download_bytes(kind: str, info: RepoInfo, patterns: Sequence[str] = (), pinned: Sequence[str] = ()) -> int | None:
    """How much a download fetches: equal contents once. None where the hub does not say it of every file."""
    try:
        chosen = {*select(kind, [file.path for file in info.files or ()], patterns).paths, *pinned}
    except TransferFailed:
        return None
    sizes = {file.digest or file.path: file.size_bytes for file in info.files or () if file.path in chosen}
    known = [size for size in sizes.values() if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _of_failure(entry: Entry, failure: EndpointFailed) -> list[Finding]:
    moved_to = failure.params.get("movedTo")
    moved = [Finding("moved", True, {"newId": moved_to})] if moved_to else []
    if failure.code in UNREACHABLE:
        return [*moved, Finding("unreachable", True, {"cause": failure.code, "reason": failure.detail})]
    if failure.code == "REPO_GATED":
        return [*moved, Finding("gated", not entry.gated)]
    params = {"revision": entry.revision} if failure.code == "REVISION_NOT_FOUND" else {}
    return [*moved, Finding(_OF_REFUSAL[failure.code], True, params)]


def _access(entry: Entry, info: RepoInfo) -> Iterator[Finding]:
    if info.disabled:
        yield Finding("disabled", True)
    if info.private:
        yield Finding("private", False)
    if info.gated:
        yield Finding("gated", not entry.gated)
    elif entry.gated:
        yield Finding("notGated", False)


def _pins(entry: Entry, info: RepoInfo) -> Iterator[Finding]:
    """What the catalog fixes and the hub contradicts. Digests of different kinds say nothing of each other."""
    held = {file.path: file for file in info.files or ()}
    for path, pin in entry.digests.items():
        file = held.get(path)
        if file is None:
            yield Finding("fileMissing", True, {"file": path})
            continue
        same_kind = file.digest is not None and file.digest.partition(":")[0] == pin.digest.partition(":")[0]
        if same_kind and file.digest != pin.digest:
            yield Finding("digestDiffers", True, {"file": path, "expected": pin.digest, "actual": file.digest})
        if pin.size_bytes is not None and file.size_bytes not in (None, pin.size_bytes):
            yield _size(path, pin.size_bytes, file.size_bytes)
    if entry.size_bytes is not None:
        actual = download_bytes(entry.kind, info, tuple(entry.files.values()), tuple(entry.digests))
        if actual not in (None, entry.size_bytes):
            yield _size(entry.repo_id, entry.size_bytes, actual)


def _size(what: str, expected: int, actual: int | None) -> Finding:
    return Finding("sizeDiffers", True, {"file": what, "expected": expected, "actual": actual})


def _licence(entry: Entry, licences: Sequence[str]) -> Iterator[Finding]:
    """A card without a licence contradicts nothing, and neither does a catalog that names none."""
    if entry.licence is not None and licences and entry.licence.lower() not in licences:
        yield Finding("licenceDiffers", True, {"expected": entry.licence, "actual": ", ".join(licences)})
