"""Where contents stand on disk: verified blobs by digest, and parts on their way to be one.

<blobs>/sha256-ab/ab12…        a verified blob, read-only, shared by every snapshot that holds it
<blobs>/parts/sha256-ab12….part   bytes so far; its length is the journal of the transfer
<blobs>/parts/sha256-ab12….lock   held by the worker that writes the part
"""

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kargah.hub.failure import TransferFailed
from kargah.hub.plan import PlannedFile
from kargah.spec.layout import fsync_folder

if TYPE_CHECKING:
    from hashlib import _Hash

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class BlobStore:
    """The blobs folder."""

    root: Path

    def prepare(self) -> None:
        """Make the folders. Raises `OSError`."""
        (self.root / "parts").mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        algorithm, _, hexdigits = digest.partition(":")
        return self.root / f"{algorithm}-{hexdigits[:2]}" / hexdigits

    def part(self, digest: str) -> Path:
        return self.root / "parts" / f"{digest.replace(':', '-')}.part"

    def lock(self, digest: str) -> Path:
        return self.root / "parts" / f"{digest.replace(':', '-')}.lock"

    def holds(self, file: PlannedFile) -> bool:
        """Whether the content is here and verified (its size is asked again, its digest was proved when it came)."""
        return size_of(self.blob(file.digest)) == file.size_bytes

    def held_bytes(self, file: PlannedFile) -> int:
        """Bytes of a content that need not be fetched: all of a blob, or the length of its part."""
        if self.holds(file):
            return file.size_bytes
        length = size_of(self.part(file.digest)) or 0
        return length if length <= file.size_bytes else 0

    def keep(self, file: PlannedFile, handle: int) -> None:
        """Turn the verified part, open as `handle`, into a blob. Raises `OSError`."""
        blob = self.blob(file.digest)
        blob.parent.mkdir(exist_ok=True)
        os.fsync(handle)
        os.replace(self.part(file.digest), blob)
        os.fchmod(handle, 0o444)
        fsync_folder(blob.parent)
        fsync_folder(self.root)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free


def size_of(path: Path) -> int | None:
    """The size of a regular file, or None when there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        return None


def new_hash(file: PlannedFile) -> "_Hash":
    """An empty hash of the file's kind of digest; a git blob's begins with its header."""
    if file.digest.startswith("sha256:"):
        return hashlib.sha256()
    # Git names contents by SHA-1; it guards against damage here, not against forgery.
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def storage_failure(error: OSError, store: BlobStore, needed_bytes: int) -> TransferFailed:
    """What a failed write means: `DISK_FULL` with the bytes still to come and those free, or `STORAGE_FAILED`."""
    if error.errno in _FULL:
        return TransferFailed("DISK_FULL", str(error), neededBytes=needed_bytes, freeBytes=store.free_bytes())
    return TransferFailed("STORAGE_FAILED", f"{type(error).__name__}: {error}")
