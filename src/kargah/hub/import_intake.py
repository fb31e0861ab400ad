"""Taking in what was brought: the same files as a download would choose, each digested and held against all that is
known of it, and put where downloads put theirs. What comes out is a plan whose contents are blobs.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from kargah.assets.catalog import Entry
from kargah.hub.blobs import BlobStore
from kargah.hub.failure import TransferFailed
from kargah.hub.import_archive import damage
from kargah.hub.import_errors import ArchiveDamaged, LfsPointer
from kargah.hub.import_source import Member, Source
from kargah.hub.import_survey import Survey, is_commit, texts_of
from kargah.hub.job import Job, Pins
from kargah.hub.plan import Plan, PlannedFile, apply_pins
from kargah.hub.selection import Selection, check_paths, needs_remote_code, select
from kargah.hub.source import BINARY_SUFFIXES, LARGE_BYTES, SourceFile, commit_of, git_blob_id, pointer_of
from kargah.spec.layout import fsync_folder

if TYPE_CHECKING:
    from hashlib import _Hash

CONFIG = "config.json"
READ_BYTES = 1024 * 1024
DISK_MARGIN_BYTES = 256 * 1024 * 1024

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
_WEIGHTS = (".safetensors", ".bin")
_INDEX = ".index.json"
_PAPERS = ("README", "LICENSE", "LICENCE", "NOTICE")

Told = Callable[[int, str], None]
"""Told the bytes done and the file, often; it may raise to end the work."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What will be taken of a source. `contents` are distinct, with their sizes; `copied_bytes` must find new room."""

    entry: Entry
    found: Survey
    selection: Selection
    contents: Mapping[str, int]
    copied_bytes: int

    @property
    def files(self) -> dict[str, Member]:
        return {path: self.found.files[path] for path in self.selection.paths}

    @property
    def total_bytes(self) -> int:
        return sum(self.contents.values())


@dataclass(frozen=True, slots=True)
class Digested:
    """A content after it was read: its size, its digests by algorithm, and where its bytes are now."""

    size_bytes: int
    digests: Mapping[str, str]
    place: Path


def choose(entry: Entry, source: Source, found: Survey) -> Chosen:
    """The files that a download of `entry` would fetch. Raises `TransferFailed`, `LfsPointer`.

    A model must have its config, weights, and every part that an index of weights names.
    """
    paths = list(found.files)
    check_paths(paths)
    patterns = tuple(entry.files.values())
    if entry.kind == "model" and not patterns and CONFIG not in found.files:
        raise _missing(CONFIG)
    selection = select(entry.kind, paths, patterns)
    pinned = [path for path in entry.digests if path in found.files and path not in selection.paths]
    selection = Selection((*selection.paths, *pinned), selection.needs_conversion)
    if entry.kind == "model" and not patterns:
        _check_model(entry, source, found, selection.paths)
    members = [found.files[path] for path in selection.paths]
    contents = {member.content: member.size_bytes for member in members}
    copied = sum(size for content, size in contents.items() if source.place(content) is None)
    return Chosen(entry, found, selection, contents, copied)


def check_space(chosen: Chosen, store: BlobStore) -> None:
    """Refuse before the first byte what the disk cannot hold. Raises `TransferFailed` (`DISK_FULL`)."""
    free = store.free_bytes()
    needed = chosen.copied_bytes + DISK_MARGIN_BYTES
    if chosen.copied_bytes and needed > free:
        raise TransferFailed("DISK_FULL", f"{needed} bytes needed, {free} free", neededBytes=needed, freeBytes=free)


def digest_all(chosen: Chosen, source: Source, folder: Path, told: Told) -> dict[str, Digested]:
    """Read every content once; what is not ours is copied into `folder`. Returns them by content.

    Raises `ArchiveDamaged`, `LfsPointer`, `OSError`, and what `told` raises.
    """
    # What an import that was ended half-way left there may be linked among the blobs: never written over.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wanted: dict[str, set[str]] = {}
    for path, member in chosen.files.items():
        wanted.setdefault(member.content, set()).update(_algorithms(path, member, chosen))
    digested: dict[str, Digested] = {}
    done = 0
    for content, file in source.read(set(chosen.contents)):
        size = chosen.contents[content]
        own = source.place(content)
        place = own or folder / str(len(digested))
        digested[content] = _digest(
            content, file, size, wanted[content], place, own is None, partial(_tell, told, done, content)
        )
        done += size
    missing = sorted(set(chosen.contents) - set(digested))
    if missing:
        raise ArchiveDamaged(missing[0])
    return digested


def plan_of(chosen: Chosen, digested: Mapping[str, Digested], job: Job) -> Plan:
    """What was read, held against what the source and the catalog say of it.

    Raises `TransferFailed`: `CHECKSUM_MISMATCH` and `FILE_NOT_FOUND`, with the `file`.
    """
    files = []
    described = []
    for path, member in chosen.files.items():
        read = digested[member.content]
        said = [digest for digest in (chosen.found.digests.get(path), job.pins.digests.get(path)) if digest is not None]
        for digest in said:
            actual = read.digests[digest.partition(":")[0]]
            if actual != digest:
                raise _mismatch(path, digest, actual)
        if path.endswith(".safetensors"):
            _check_safetensors(path, read)
        digest = said[-1] if said else read.digests[_own_algorithm(path, read.size_bytes)]
        files.append(PlannedFile(path, read.size_bytes, digest))
        described.append(_described(path, read))
    plan = Plan(
        repo_id=chosen.entry.repo_id,
        kind=chosen.entry.kind,
        endpoint="",
        commit=chosen.found.commit or commit_of(described),
        files=tuple(sorted(files, key=lambda file: file.path)),
        needs_conversion=chosen.selection.needs_conversion,
        has_code=any(path.endswith(".py") for path in chosen.found.files),
    )
    return apply_pins(plan, job)


def pins_of(entry: Entry, found: Survey) -> Pins:
    """What the catalog fixes of an entry: its digests, and its commit where the source says which one it is."""
    commit = entry.revision if is_commit(entry.revision) and found.commit is not None else None
    return Pins(commit, {path: file.digest for path, file in entry.digests.items()})


def proof_of(chosen: Chosen) -> str:
    """What vouches for the contents: `pinned`, `manifest`, `hub`, or `unproved`.

    The weaker ones are what came with the files: they show that nothing was damaged on the way, not who made it.
    """
    contents = [path for path in chosen.selection.paths if PurePosixPath(path).name.partition(".")[0] not in _PAPERS]
    if contents and all(path in chosen.entry.digests for path in contents):
        return "pinned"
    if contents and all(path in chosen.found.digests for path in contents):
        return chosen.found.proof
    return "unproved"


def keep(plan: Plan, chosen: Chosen, digested: Mapping[str, Digested], store: BlobStore) -> None:
    """Put what was read among the blobs. Raises `OSError`.

    Each blob stays linked from the import's folder as well, so that nobody sweeps it away before the snapshot has it,
    and an import that is ended half-way still has all it came with.
    """
    store.prepare()
    for file in plan.contents:
        place = digested[chosen.found.files[file.path].content].place
        blob = store.blob(file.digest)
        if store.holds(file) and _link(blob, place.with_name(f"{place.name}.held")):
            continue
        blob.parent.mkdir(exist_ok=True)
        with open(place, "rb") as written:
            os.fsync(written.fileno())
        blob.unlink(missing_ok=True)
        if not _link(place, blob):
            os.replace(place, blob)
        os.chmod(blob, 0o444)
        fsync_folder(blob.parent)
    fsync_folder(store.root)


def _check_model(entry: Entry, source: Source, found: Survey, chosen: Sequence[str]) -> None:
    indexes = [path for path in chosen if path.endswith(_INDEX)]
    told = texts_of(source, found.files, [CONFIG, *indexes])
    if told.get(CONFIG, "").startswith(_POINTER.decode()):
        raise LfsPointer(CONFIG)
    if needs_remote_code(_json(told.get(CONFIG, "")), has_code=any(path.endswith(".py") for path in found.files)):
        raise TransferFailed("NEEDS_REMOTE_CODE", f"{entry.id} loads by its own code", repoId=entry.repo_id)
    for index in indexes:
        value = _json(told.get(index, ""))
        parts = value.get("weight_map") if isinstance(value, dict) else None
        folder = PurePosixPath(index).parent
        for part in sorted({str(one) for one in parts.values()}) if isinstance(parts, dict) else ():
            if (folder / part).as_posix() not in chosen:
                raise _missing((folder / part).as_posix())
    if not any(path.endswith(_WEIGHTS) for path in chosen):
        raise _missing("model.safetensors")


def _algorithms(path: str, member: Member, chosen: Chosen) -> Iterable[str]:
    yield _own_algorithm(path, member.size_bytes)
    pin = chosen.entry.digests.get(path)
    for digest in (chosen.found.digests.get(path), pin.digest if pin else None):
        if digest is not None:
            yield digest.partition(":")[0]


def _own_algorithm(path: str, size_bytes: int) -> str:
    """How a hub names a file that nobody has named yet: large and binary ones by SHA-256, the others as git does."""
    is_large = size_bytes >= LARGE_BYTES or PurePosixPath(path).suffix.lower() in BINARY_SUFFIXES
    return "sha256" if is_large else "git-sha1"


def _digest(
    content: str,
    file: BinaryIO,
    size: int,
    algorithms: set[str],
    place: Path,
    copies: bool,
    told: Callable[[int], None],
) -> Digested:
    hashes: dict[str, _Hash] = {}
    if "sha256" in algorithms:
        hashes["sha256"] = hashlib.sha256()
    if "git-sha1" in algorithms:
        hashes["git-sha1"] = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    read = 0
    written: BinaryIO | None = open(place, "wb") if copies else None  # noqa: SIM115 - closed below
    try:
        while True:
            with damage(content):
                part = file.read(READ_BYTES)
            if not part:
                break
            if read == 0 and size < _POINTER_BYTES and part.startswith(_POINTER):
                raise LfsPointer(content)
            read += len(part)
            if read > size:
                raise ArchiveDamaged(content)
            for one in hashes.values():
                one.update(part)
            if written is not None:
                written.write(part)
            told(read)
    finally:
        if written is not None:
            written.close()
    if read != size:
        raise ArchiveDamaged(content)
    return Digested(size, {name: f"{name}:{one.hexdigest()}" for name, one in hashes.items()}, place)


def _tell(told: Told, before: int, content: str, read: int) -> None:
    told(before + read, content)


def _described(path: str, read: Digested) -> SourceFile:
    if _own_algorithm(path, read.size_bytes) == "sha256":
        sha256 = read.digests["sha256"].partition(":")[2]
        pointer = git_blob_id(pointer_of(sha256, read.size_bytes))
        return SourceFile(path, read.place, read.size_bytes, pointer, sha256)
    return SourceFile(path, read.place, read.size_bytes, read.digests["git-sha1"].partition(":")[2])


def _check_safetensors(path: str, read: Digested) -> None:
    """A file of weights says itself how long it is: one that was cut off on the way is found without a digest.

    The format: https://huggingface.co/docs/safetensors. Raises `TransferFailed`.
    """
    with open(read.place, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        header = _json(file.read(length).decode("utf-8", "replace")) if 0 < length <= 100_000_000 else None
    if not isinstance(header, dict):
        raise _mismatch(path, "safetensors", "no header")
    try:
        end = max((int(one["data_offsets"][1]) for name, one in header.items() if name != "__metadata__"), default=0)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _mismatch(path, "safetensors", "no offsets") from error
    if 8 + length + end != read.size_bytes:
        raise _mismatch(path, f"{8 + length + end} bytes", f"{read.size_bytes} bytes")


def _link(present: Path, wanted: Path) -> bool:
    """Whether both names are one file now; some file systems cannot."""
    try:
        wanted.unlink(missing_ok=True)
        os.link(present, wanted)
    except OSError:
        return False
    return True


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _missing(file: str) -> TransferFailed:
    return TransferFailed("FILE_NOT_FOUND", f"{file} is not there", file=file)


def _mismatch(file: str, expected: str, actual: str) -> TransferFailed:
    return TransferFailed(
        "CHECKSUM_MISMATCH", f"{file}: {expected}, not {actual}", file=file, expected=expected, actual=actual
    )
