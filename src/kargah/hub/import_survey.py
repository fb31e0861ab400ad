"""What a source turns out to be: which approved entry, which commit, where its files begin, what it says of them.

Understood are
- the folder that the hub's client leaves with `--local-dir` (it keeps commit and digests in `.cache/huggingface`),
- a folder of its cache, `models--org--name/snapshots/<commit>/…`, whose blobs are named by their digests,
- what another Kargah holds, `models/<org--name>/<commit>/…`, with the digests in `manifest.json`,
- a plain folder, such as a clone by git,

each below any number of folders that hold nothing else. What a source says of itself is only ever checked, never
believed: it can make an import fail, and the entry must be approved whatever the source calls itself.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from kargah.assets.catalog import Catalog, Entry, Kind
from kargah.assets.errors import DatasetNotAllowed, ModelNotAllowed
from kargah.hub.import_archive import damage
from kargah.hub.import_errors import ImportEmpty, ImportMismatch, ImportUnnamed
from kargah.hub.import_source import Member, Source
from kargah.spec.manifest import MANIFEST

MAX_TOLD_BYTES = 8 * 1024 * 1024
"""A larger file tells nothing of the source."""

_JUNK_FOLDERS = frozenset(
    {"__MACOSX", ".git", "__pycache__", ".Trashes", ".Spotlight-V100", "System Volume Information"}
)
_JUNK_FILES = re.compile(r"^(\._.*|\.DS_Store|Thumbs\.db|desktop\.ini)$")
_CACHE = re.compile(r"^(?:.*/)?(models|datasets)--([^/]+)/(snapshots/([0-9a-f]{40})|refs/main|blobs)(?:/(.+))?$")
_LOCAL_NOTES = ".cache/huggingface/download/"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}")
_BRANCH = re.compile(r"-(main|master)$")


@dataclass(frozen=True, slots=True)
class Survey:
    """`files` are those of the repository by their own path; `digests` what the source says of some of them.

    `proof` is `manifest` (another Kargah's), `hub` (what the hub's client kept), or `unproved`. `calls_itself` is the
    repository that the source names, `commit` the commit.
    """

    files: Mapping[str, Member]
    kind: Kind | None = None
    calls_itself: str | None = None
    commit: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    proof: str = "unproved"
    names: tuple[str, ...] = ()
    """What its folders are called, the innermost first."""
    manifest: Member | None = None
    """The other Kargah's manifest, which is none of the files."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What whoever sends the files says beside them, where the files alone no longer tell it."""

    commit: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


def survey(source: Source, claims: Claims | None = None) -> Survey:
    """Look at a source. Raises `ImportEmpty`, and what its members raise."""
    members = {path: member for path, member in source.members().items() if not _is_junk(path)}
    found = _of_cache(source, members) or _of_kargah(source, members) or _of_folder(source, members)
    if not found.files:
        raise ImportEmpty()
    if claims is None or (not claims.commit and not claims.digests):
        return found
    digests = {**found.digests, **{path: digest for path, digest in claims.digests.items() if path in found.files}}
    return Survey(
        files=found.files,
        kind=found.kind,
        calls_itself=found.calls_itself,
        commit=found.commit or claims.commit,
        digests=digests,
        proof="hub" if found.proof == "unproved" and claims.digests else found.proof,
        names=found.names,
        manifest=found.manifest,
    )


def entry_of(found: Survey, catalog: Catalog, kind: Kind, wanted: str | None) -> Entry:
    """The approved entry that a source is: what was asked for, what it calls itself, or what its folders are called.

    Raises `ModelNotAllowed`, `DatasetNotAllowed`, `ImportMismatch`, `ImportUnnamed`.
    """
    if wanted is not None:
        entry = catalog.require(kind, wanted)
        named = found.calls_itself
        if named is not None and (named not in (entry.id, entry.repo_id) or found.kind not in (None, kind)):
            raise ImportMismatch(found=named, wanted=entry.id)
        return entry
    if found.calls_itself is not None:
        if found.kind not in (None, kind):
            raise (ModelNotAllowed if kind == "model" else DatasetNotAllowed)(id=found.calls_itself)
        return catalog.require(kind, found.calls_itself)
    for name in found.names:
        matching = _called(catalog, kind, name)
        if len(matching) == 1:
            return matching[0]
    raise ImportUnnamed()


def texts_of(source: Source, members: Mapping[str, Member], paths: Iterable[str]) -> dict[str, str]:
    """The small files among `paths`, as text."""
    wanted = {members[path].content: path for path in paths if members[path].size_bytes <= MAX_TOLD_BYTES}
    if not wanted:
        return {}
    texts = {}
    for name, file in source.read(set(wanted)):
        with damage(name):
            texts[wanted[name]] = file.read(MAX_TOLD_BYTES).decode("utf-8", "replace")
    return texts


def is_digest(text: object) -> bool:
    """Whether `text` is a digest as manifests have it."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def is_commit(text: object) -> bool:
    """Whether `text` is the id of a commit."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def _is_junk(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return any(part in _JUNK_FOLDERS for part in parts[:-1]) or bool(_JUNK_FILES.match(parts[-1]))


def _of_cache(source: Source, members: Mapping[str, Member]) -> Survey | None:
    """A folder of the client's cache. Of several commits the one that `main` was is taken, else the only one."""
    places = {path: match for path in members if (match := _CACHE.match(f"{source.name}/{path}")) is not None}
    commits = {match[4] for match in places.values() if match[4]}
    repos = {(match[1], match[2]) for match in places.values()}
    if not commits or len(repos) != 1:
        return None
    told = texts_of(source, members, [path for path, match in places.items() if match[3] == "refs/main"])
    main = {text.strip() for text in told.values()} & commits
    if len(main) != 1 and len(commits) != 1:
        return None
    (commit,) = main or commits
    (folder, name), *_ = repos
    files = {match[5]: members[path] for path, match in places.items() if match[4] == commit and match[5]}
    digests = {path: _blob_digest(member) for path, member in files.items()}
    known = {path: digest for path, digest in digests.items() if digest is not None}
    return Survey(
        files=files,
        kind="dataset" if folder == "datasets" else "model",
        calls_itself=name.replace("--", "/"),
        commit=commit,
        digests=known,
        proof="hub" if known else "unproved",
    )


def _blob_digest(member: Member) -> str | None:
    """The digest that a blob of the cache is named by, where the file is a link to one."""
    name = PurePosixPath(member.content).name
    if member.content == member.path or PurePosixPath(member.content).parent.name != "blobs":
        return None
    digest = f"sha256:{name}" if len(name) == 64 else f"git-sha1:{name}"
    return digest if is_digest(digest) else None


def _of_kargah(source: Source, members: Mapping[str, Member]) -> Survey | None:
    """What another Kargah holds. Of several, none: nobody said which."""
    candidates = [path for path in members if PurePosixPath(path).name == MANIFEST and path.count("/") <= 5]
    found = []
    for path, text in texts_of(source, members, candidates).items():
        manifest = _object(text)
        if isinstance(manifest.get("files"), dict) and isinstance(manifest.get("repoId"), str):
            found.append((path.removesuffix(MANIFEST), manifest))
    if len(found) != 1:
        return None
    top, manifest = found[0]
    files = _below(members, top)
    files.pop(MANIFEST, None)
    digests = {
        path: entry["digest"]
        for path, entry in manifest["files"].items()
        if isinstance(entry, dict) and is_digest(entry.get("digest"))
    }
    kind = manifest.get("kind")
    return Survey(
        files=files,
        kind=kind if kind in ("model", "dataset") else None,
        calls_itself=manifest["repoId"],
        commit=manifest["commit"] if is_commit(manifest.get("commit")) else None,
        digests=digests,
        proof="manifest",
        manifest=members[f"{top}{MANIFEST}"],
    )


def _of_folder(source: Source, members: Mapping[str, Member]) -> Survey:
    """A plain folder: the innermost one that holds everything. The client's notes in it are read, if there are any."""
    shown = [path for path in members if not path.startswith(_LOCAL_NOTES) and f"/{_LOCAL_NOTES}" not in path]
    top = ""
    while shown and all(path.startswith(top) and "/" in path[len(top) :] for path in shown):
        first = shown[0][len(top) :].split("/")[0]
        if not all(path[len(top) :].startswith(f"{first}/") for path in shown):
            break
        top = f"{top}{first}/"
    names = (*reversed(PurePosixPath(top).parts), source.name)
    files = _below({path: members[path] for path in shown}, top)
    notes = {
        path.removeprefix(f"{top}{_LOCAL_NOTES}").removesuffix(".metadata"): path
        for path in members
        if path.startswith(f"{top}{_LOCAL_NOTES}") and path.endswith(".metadata")
    }
    told = texts_of(source, members, [place for path, place in notes.items() if path in files])
    commits: set[str] = set()
    digests: dict[str, str] = {}
    for path, place in notes.items():
        lines = told.get(place, "").splitlines()
        if len(lines) >= 2 and is_commit(lines[0]):
            commits.add(lines[0])
            digest = f"sha256:{lines[1]}" if len(lines[1]) == 64 else f"git-sha1:{lines[1]}"
            if is_digest(digest):
                digests[path] = digest
    return Survey(
        files=files,
        commit=commits.pop() if len(commits) == 1 else None,
        digests=digests,
        proof="hub" if digests else "unproved",
        names=names,
    )


def _below(members: Mapping[str, Member], top: str) -> dict[str, Member]:
    return {path[len(top) :]: member for path, member in members.items() if path.startswith(top)}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _called(catalog: Catalog, kind: Kind, name: str) -> list[Entry]:
    """Entries that a folder of this name may hold: by the whole id, or by its last part."""
    key = _BRANCH.sub("", name).casefold()
    spelled = {key, key.replace("--", "/"), key.replace("__", "/")}
    entries = catalog.of_kind(kind)
    whole = [entry for entry in entries if spelled & {entry.id.casefold(), entry.repo_id.casefold()}]
    last = [
        entry for entry in entries if key in {one.rpartition("/")[2].casefold() for one in (entry.id, entry.repo_id)}
    ]
    return whole or last
