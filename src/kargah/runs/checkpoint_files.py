"""The files of a checkpoint on their way out: a zip (stored, written as it is sent) or a single file, whole or in part.

Everything is opened before the first byte leaves, so a deletion meanwhile cuts nothing short; the length is known then
as well. Memory stays the same however large a checkpoint is.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from kargah.runs.errors import CheckpointNotFound, ModelDamaged, NoSuchFile
from kargah.spec.manifest import MANIFEST, FolderDamaged, read_manifest

CARD = "README.md"
TRAINING_STATE = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "scaler.pt",
    "trainer_state.json",
    "training_args.bin",
    "hooks.json",
)
"""What only a run that goes on needs; a model that is used needs none of it."""

READ_BYTES = 1 << 20

_RNG_OF_A_PROCESS = re.compile(r"rng_state_\d+\.pth")
_FIRST_YEAR, _LAST_YEAR = 1980, 2107

# APPNOTE.TXT 4.3 of the zip format: bytes of each record without names and extra fields.
_LOCAL, _CENTRAL, _END = 30, 46, 22
_DESCRIPTOR, _DESCRIPTOR_64 = 16, 24
_EXTRA_64, _END_64 = 20, 56 + 20


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: an open one, or one that is made on the spot. `at` is its time of change."""

    name: str
    size_bytes: int
    at: datetime
    source: BinaryIO | bytes


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One file of a checkpoint, open. `digest` as the manifest has it."""

    name: str
    size_bytes: int
    digest: str
    file: BinaryIO


class Archive:
    """A zip of members, all of them open. To be closed; iterating gives its bytes, once."""

    def __init__(self, members: list[Member], opened: ExitStack) -> None:
        self._members = members
        self._opened = opened
        self.size_bytes = zip_bytes([(member.name, member.size_bytes) for member in members])

    def __iter__(self) -> Iterator[bytes]:
        sink = _Sink()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
            for member in self._members:
                with archive.open(_info(member), "w", force_zip64=_is_large(member.size_bytes)) as entry:
                    for part in _parts(member):
                        entry.write(part)
                        yield sink.take()
        yield sink.take()

    def close(self) -> None:
        """Let the files go."""
        self._opened.close()


def open_archive(checkpoint_id: str, folder: Path, card: str, *, training: bool) -> Archive:
    """The zip of a checkpoint: the model with `card`, and what training goes on from if that is wanted too.

    Its manifest names what is in it, so that what was unpacked can be verified. Raises `CheckpointNotFound` and
    `ModelDamaged` (with the file).
    """
    manifest = manifest_of(checkpoint_id, folder)
    files = {
        name: entry
        for name, entry in manifest["files"].items()
        if name != CARD and (training or not is_training_state(name))
    }
    with ExitStack() as opened:
        members = []
        for name, entry in files.items():
            file = opened.enter_context(_open(checkpoint_id, folder, name, entry["sizeBytes"]))
            at = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
            members.append(Member(name, entry["sizeBytes"], at, file))
        at = max((member.at for member in members), default=datetime.now(UTC))
        readme = card.encode()
        digest = f"sha256:{hashlib.sha256(readme).hexdigest()}"
        listed = {**files, CARD: {"sizeBytes": len(readme), "digest": digest}}
        own = json.dumps({**manifest, "files": listed}, ensure_ascii=False, indent=1).encode()
        members += [Member(CARD, len(readme), at, readme), Member(MANIFEST, len(own), at, own)]
        return Archive(members, opened.pop_all())
    raise AssertionError("unreachable")


def open_file(checkpoint_id: str, folder: Path, name: str) -> OpenFile:
    """One file that the manifest names, or the manifest. Raises `CheckpointNotFound`, `NoSuchFile`, `ModelDamaged`."""
    files = manifest_of(checkpoint_id, folder)["files"]
    if name == MANIFEST:
        file = _open(checkpoint_id, folder, name, None)
        digest = f"sha256:{hashlib.sha256(file.read()).hexdigest()}"
        return OpenFile(name, os.fstat(file.fileno()).st_size, digest, file)
    if name not in files:
        raise NoSuchFile(id=checkpoint_id, file=name)
    entry = files[name]
    return OpenFile(name, entry["sizeBytes"], entry["digest"], _open(checkpoint_id, folder, name, entry["sizeBytes"]))


def manifest_of(checkpoint_id: str, folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, every entry of it of the right form. Raises `CheckpointNotFound` for a folder that
    is gone, `ModelDamaged` for a manifest that cannot be read or that names a file outside the folder."""
    try:
        manifest = read_manifest(folder)
    except (FolderDamaged, OSError) as error:
        raise _missing(checkpoint_id, folder, MANIFEST) from error
    for name, entry in manifest["files"].items():
        sound = isinstance(entry, dict) and isinstance(entry.get("sizeBytes"), int)
        place = PurePosixPath(name)
        if not sound or not isinstance(entry.get("digest"), str) or place.is_absolute() or ".." in place.parts:
            raise ModelDamaged(id=checkpoint_id, file=MANIFEST)
    return manifest


def is_training_state(name: str) -> bool:
    """Whether a file of a checkpoint is of use only to a run that goes on from it."""
    return name in TRAINING_STATE or bool(_RNG_OF_A_PROCESS.fullmatch(name))


def zip_bytes(files: list[tuple[str, int]]) -> int:
    """The length of the zip that `Archive` writes of files with these names and sizes."""
    offset = directory = 0
    for name, size_bytes in files:
        name_bytes = len(name.encode())
        large = _is_large(size_bytes)
        # In the directory 64-bit numbers stand only where 32 bits of them do not do.
        wide = 2 * (size_bytes > zipfile.ZIP64_LIMIT) + (offset > zipfile.ZIP64_LIMIT)
        directory += _CENTRAL + name_bytes + (4 + 8 * wide if wide else 0)
        offset += _LOCAL + name_bytes + (_EXTRA_64 if large else 0)
        offset += size_bytes + (_DESCRIPTOR_64 if large else _DESCRIPTOR)
    wide_end = (
        len(files) > zipfile.ZIP_FILECOUNT_LIMIT or offset > zipfile.ZIP64_LIMIT or directory > zipfile.ZIP64_LIMIT
    )
    return offset + directory + (_END_64 if wide_end else 0) + _END


def part_of(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """The bytes (first, behind the last) that a `Range` header asks for, or None for the whole file (RFC 9110, 14.2).

    Of several ranges, and of a header that is none, nothing is made: the whole file is the right answer to both.
    Raises `ValueError` for a range behind the end.
    """
    found = re.fullmatch(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", header or "", re.IGNORECASE | re.ASCII)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        first, end = max(0, size_bytes - int(found[2])), size_bytes
    else:
        first, end = int(found[1]), min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
        if found[2] and int(found[2]) < first:
            return None
    if first >= end:
        raise ValueError(f"{header} of {size_bytes} bytes")
    return first, end


def read_part(file: BinaryIO, first: int, end: int) -> Iterator[bytes]:
    """Bytes `first` to `end` of a file, bit by bit. Raises `OSError` when it ends before."""
    file.seek(first)
    while first < end:
        part = file.read(min(READ_BYTES, end - first))
        if not part:
            raise OSError("a file became shorter while it was sent")
        first += len(part)
        yield part


class _Sink:
    """Takes what zipfile writes; it cannot seek, so zipfile writes straight on."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def _parts(member: Member) -> Iterator[bytes]:
    if isinstance(member.source, bytes):
        yield member.source
    else:
        yield from read_part(member.source, 0, member.size_bytes)


def _info(member: Member) -> zipfile.ZipInfo:
    at = member.at
    year = min(max(at.year, _FIRST_YEAR), _LAST_YEAR)
    info = zipfile.ZipInfo(member.name, (year, at.month, at.day, at.hour, at.minute, at.second))
    info.file_size = member.size_bytes
    info.external_attr = 0o100644 << 16
    return info


def _is_large(size_bytes: int) -> bool:
    # zipfile's own rule, for a stored file could have been one that compression makes larger.
    return size_bytes * 1.05 > zipfile.ZIP64_LIMIT


def _open(checkpoint_id: str, folder: Path, name: str, size_bytes: int | None) -> BinaryIO:
    try:
        file = open(folder / name, "rb")  # noqa: SIM115 - the answer closes it
    except OSError as error:
        raise _missing(checkpoint_id, folder, name) from error
    if size_bytes is not None and os.fstat(file.fileno()).st_size != size_bytes:
        file.close()
        raise ModelDamaged(id=checkpoint_id, file=name)
    return file


def _missing(checkpoint_id: str, folder: Path, name: str) -> CheckpointNotFound | ModelDamaged:
    """A file that is not there: of a checkpoint that is gone, or of one that is damaged."""
    return ModelDamaged(id=checkpoint_id, file=name) if folder.is_dir() else CheckpointNotFound(id=checkpoint_id)
