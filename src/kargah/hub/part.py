"""The part of one file: bytes appended as they come, hashed and brought to the disk meanwhile by threads of their own.

Every byte is written before it is counted and nothing is buffered, so the length on disk says how far the transfer got,
whenever the process dies. Bytes are received into a ring of buffers, written from there and hashed from there: no copy
is made between the network and the disk.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Self

from kargah.hub.blobs import BlobStore, new_hash
from kargah.hub.failure import Stopped
from kargah.hub.plan import PlannedFile
from kargah.hub.progress import Meter

_BUFFER_BYTES = 256 * 1024
"""What is received stays in a core's cache until it is written and hashed."""
_NUM_BUFFERS = 8
_INLINE_BYTES = 1024 * 1024
"""A smaller file is hashed where it is read: a thread would cost more."""
_FLUSHED_BYTES = 32 * 1024 * 1024
"""So much is brought to the disk at once while more comes, so that the last flush has little left to do."""
_flush: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
"""macOS knows only the second."""


class Part:
    """An open part; its lock is the caller's. Raises `OSError` when the disk refuses."""

    def __init__(self, store: BlobStore, file: PlannedFile, meter: Meter, stop: threading.Event) -> None:
        """Open the part and hash what is there. Raises `Stopped`."""
        self._store = store
        self._file = file
        self._meter = meter
        self._handle = os.open(store.part(file.digest), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._hashing = _Hashing(file)
        self._flushing = _Flushing(self._handle)
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

    def space(self, num_bytes: int) -> memoryview:
        """Where the next bytes belong, at most `num_bytes` and at least one. Valid until `append`."""
        return self._hashing.space(num_bytes)

    def append(self, num_bytes: int) -> None:
        """Write the first bytes of `space` at the end: they came from the network."""
        view = self._hashing.space(num_bytes)
        while view:
            written = os.write(self._handle, view)
            view = view[written:]
            self.length += written
        self._hashing.take(num_bytes)
        self._flushing.written(num_bytes)
        self.furthest = max(self.furthest, self.length)
        self._meter.received(self._file, num_bytes)

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
        self._flushing.close()
        self._store.keep(self._file, self._handle)

    def close(self) -> None:
        self._hashing.close()
        try:
            self._flushing.close()
        finally:
            os.close(self._handle)

    def _take_up(self, stop: threading.Event) -> None:
        length = os.fstat(self._handle).st_size
        if length > self._file.size_bytes:
            os.ftruncate(self._handle, 0)
            length = 0
        while self.length < length:
            if stop.is_set():
                raise Stopped
            num_bytes = os.preadv(self._handle, [self._hashing.space(length - self.length)], self.length)
            if not num_bytes:
                break
            self._hashing.take(num_bytes)
            self.length += num_bytes
            self._meter.touch()
        self.furthest = self.length
        self._meter.place(self._file, self.length)


class _Hashing:
    """A running hash over a ring of buffers: of a large file, one is hashed by a thread while the next is filled."""

    def __init__(self, file: PlannedFile) -> None:
        self._hash = new_hash(file)
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._num_buffers = 0
        # The first buffer of a small file holds all of it.
        self._buffer_bytes = max(1, min(file.size_bytes, _BUFFER_BYTES))
        self._buffer = self._new_buffer()
        self._used = 0
        if file.size_bytes > _INLINE_BYTES:
            self._thread = threading.Thread(target=self._consume, daemon=True)
            self._thread.start()

    def space(self, num_bytes: int) -> memoryview:
        """Where the next bytes belong, at most `num_bytes` and at least one."""
        return self._buffer[self._used : self._used + num_bytes]

    def take(self, num_bytes: int) -> None:
        """The first bytes of `space` are content."""
        if self._thread is None:
            self._hash.update(self._buffer[self._used : self._used + num_bytes])
            self._used = (self._used + num_bytes) % self._buffer_bytes
            return
        self._used += num_bytes
        if self._used == self._buffer_bytes:
            self._filled.put(self._buffer)
            self._buffer = self._next_buffer()
            self._used = 0

    def hexdigest(self) -> str:
        if self._thread is not None and self._used:
            self._filled.put(self._buffer[: self._used])
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._thread is not None:
            self._filled.put(None)
            self._thread.join()
            self._thread = None

    def _next_buffer(self) -> memoryview:
        if self._num_buffers < _NUM_BUFFERS and self._free.empty():
            return self._new_buffer()
        return self._free.get()

    def _new_buffer(self) -> memoryview:
        self._num_buffers += 1
        return memoryview(bytearray(self._buffer_bytes))

    def _consume(self) -> None:
        while (buffer := self._filled.get()) is not None:
            self._hash.update(buffer)
            self._free.put(buffer)


class _Flushing:
    """Brings an open file to the disk while it grows: the network and the disk work at the same time."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._num_waiting_bytes = 0
        self._due: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    def written(self, num_bytes: int) -> None:
        """So many bytes were appended. Raises `OSError` when an earlier flush failed."""
        self._num_waiting_bytes += num_bytes
        if self._num_waiting_bytes < _FLUSHED_BYTES:
            return
        self._num_waiting_bytes = 0
        self._check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._flush, daemon=True)
            self._thread.start()
        if self._due.empty():
            self._due.put(True)

    def close(self) -> None:
        """End the thread. Raises `OSError` when a flush failed: the kernel says so only once."""
        if self._thread is not None:
            self._due.put(False)
            self._thread.join()
            self._thread = None
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _flush(self) -> None:
        while self._due.get():
            try:
                _flush(self._handle)
            except OSError as error:
                self._failure = error
                return
