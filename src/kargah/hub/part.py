"""The part of one file: bytes appended as they come, hashed on the way in a second thread.

Every byte is written before it is counted and nothing is buffered, so the length on disk says how far the transfer got,
whenever the process dies.
"""

import os
import queue
import threading
from typing import TYPE_CHECKING, Self

from kargah.hub.blobs import BlobStore, new_hash
from kargah.hub.failure import Stopped
from kargah.hub.plan import PlannedFile
from kargah.hub.progress import Meter

if TYPE_CHECKING:
    from hashlib import _Hash

_REHASH_BYTES = 4 * 1024 * 1024
_INLINE_BYTES = 1024 * 1024
"""A smaller file is hashed where it is read: a thread would cost more."""
_QUEUED_CHUNKS = 64


class Part:
    """An open part; its lock is the caller's. Raises `OSError` when the disk refuses."""

    def __init__(self, store: BlobStore, file: PlannedFile, meter: Meter, stop: threading.Event) -> None:
        """Open the part and hash what is there. Raises `Stopped`."""
        self._store = store
        self._file = file
        self._meter = meter
        self._handle = os.open(store.part(file.digest), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._hashing = _Hashing(file)
        self.length = 0
        self.furthest = 0
        """The greatest length so far: only a byte beyond it is progress."""
        try:
            self._take_up(stop)
        except BaseException:
            self.close()
            raise
        self.resumed = self.length > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, chunk: bytes) -> None:
        """Write bytes from the network at the end."""
        view = memoryview(chunk)
        while view:
            written = os.write(self._handle, view)
            view = view[written:]
            self.length += written
        self._hashing.update(chunk)
        self.furthest = max(self.furthest, self.length)
        self._meter.received(self._file, len(chunk))

    def restart(self) -> None:
        """Throw away what is there."""
        os.ftruncate(self._handle, 0)
        self._hashing.close()
        self._hashing = _Hashing(self._file)
        self.length = 0
        self._meter.place(self._file, 0)

    def digest(self) -> str:
        """The digest of everything appended."""
        return f"{self._file.digest.partition(':')[0]}:{self._hashing.hexdigest()}"

    def keep(self) -> None:
        """Make it a blob: the digest was found right."""
        self._store.keep(self._file, self._handle)

    def close(self) -> None:
        self._hashing.close()
        os.close(self._handle)

    def _take_up(self, stop: threading.Event) -> None:
        length = os.fstat(self._handle).st_size
        if length > self._file.size_bytes:
            os.ftruncate(self._handle, 0)
            length = 0
        while self.length < length:
            if stop.is_set():
                raise Stopped
            chunk = os.pread(self._handle, min(_REHASH_BYTES, length - self.length), self.length)
            if not chunk:
                break
            self._hashing.update(chunk)
            self.length += len(chunk)
            self._meter.touch()
        self.furthest = self.length
        self._meter.place(self._file, self.length)


class _Hashing:
    """A running hash, in a thread of its own for a large file."""

    def __init__(self, file: PlannedFile) -> None:
        self._hash = new_hash(file)
        self._chunks: queue.Queue[bytes | None] | None = None
        if file.size_bytes > _INLINE_BYTES:
            self._chunks = queue.Queue(_QUEUED_CHUNKS)
            self._thread = threading.Thread(target=_consume, args=(self._hash, self._chunks), daemon=True)
            self._thread.start()

    def update(self, chunk: bytes) -> None:
        if self._chunks is None:
            self._hash.update(chunk)
        else:
            self._chunks.put(chunk)

    def hexdigest(self) -> str:
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._chunks is not None:
            self._chunks.put(None)
            self._thread.join()
            self._chunks = None


def _consume(running: "_Hash", chunks: "queue.Queue[bytes | None]") -> None:
    while (chunk := chunks.get()) is not None:
        running.update(chunk)
