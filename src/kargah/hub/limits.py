"""Limits of a worker's fetching threads: bytes per second, connections per host over all workers, and waits cut short.

Workers are processes of their own, so what they share is on disk: `<blobs>/slots/<host>.<n>.lock`, a lock a connection.
The kernel gives a slot back when its holder ends, however it ends.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from kargah.hub.failure import Stopped
from kargah.spec.lock import FileLock, LockHeld

_POLL_SECONDS = 0.1
_READS_A_SECOND = 8
"""A limited thread reads so little at once that it waits often and briefly."""
_LEAST_BYTES = 1024
_FRESH_SECONDS = 1.0


class StopSignal(threading.Event):
    """The stop of a worker's threads. `hurry` ends one wait of each thread early: it is as if its time were over."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._num_hurries = 0
        self._hurried_at = 0.0
        self._seen = threading.local()

    def set(self) -> None:
        with self._changed:
            super().set()
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        with self._changed:
            # A thread says that it will wait before it does: a hurry in between is meant for that wait.
            fresh = time.monotonic() - self._hurried_at < _FRESH_SECONDS
            seen = getattr(self._seen, "num_hurries", 0) if fresh else self._num_hurries
            self._changed.wait_for(lambda: self.is_set() or self._num_hurries != seen, timeout)
            self._seen.num_hurries = self._num_hurries
            return self.is_set()

    def hurry(self) -> None:
        """End every present wait, and of each thread that does not wait yet one that begins in a moment."""
        with self._changed:
            self._hurried_at = time.monotonic()
            self._num_hurries += 1
            self._changed.notify_all()


class Bandwidth:
    """A token bucket for all threads of a worker. From the moment of a limit on, bytes ≤ limit x seconds."""

    def __init__(self, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._told = False
        self._rate = 0
        self._balance = 0.0
        self._counted_at = clock()

    def limit(self, bytes_per_second: int) -> None:
        """From now on so many bytes a second; 0 is no limit."""
        with self._lock:
            self._told = True
            self._set(bytes_per_second)

    def begin(self, bytes_per_second: int) -> None:
        """The limit to begin with, unless another was told already."""
        with self._lock:
            if not self._told:
                self._set(bytes_per_second)

    def read_bytes(self, wanted: int) -> int:
        """How much of `wanted` to read at once."""
        rate = self._rate
        return min(wanted, max(_LEAST_BYTES, rate // _READS_A_SECOND)) if rate else wanted

    def spend(self, num_bytes: int) -> None:
        """Count bytes that came, and wait until more may come. Returns early when the worker stops."""
        with self._lock:
            self._refill()
            self._balance -= num_bytes
        while not self._stop.is_set():
            with self._lock:
                self._refill()
                if not self._rate or self._balance >= 0:
                    return
                seconds = -self._balance / self._rate
            self._stop.wait(min(seconds, 1.0))

    def _set(self, bytes_per_second: int) -> None:
        if bytes_per_second != self._rate:
            self._rate = bytes_per_second
            self._balance = 0.0
            self._counted_at = self._clock()

    def _refill(self) -> None:
        now = self._clock()
        if self._rate:
            earned = self._balance + (now - self._counted_at) * self._rate
            self._balance = min(earned, self._rate / _READS_A_SECOND)
        else:
            self._balance = 0.0
        self._counted_at = now


class HostSlots:
    """The connections that all workers together may have to one host."""

    def __init__(
        self, folder: Path, num_slots: int, stop: threading.Event, waiting: Callable[[], None] = lambda: None
    ) -> None:
        """`waiting` is called again and again while a thread waits for its turn."""
        self._folder = folder
        self._num_slots = num_slots
        self._stop = stop
        self._waiting = waiting
        self._guard = threading.Lock()
        self._held: set[Path] = set()
        """Slots of this process: a POSIX lock does not keep its own process out, so it must not be asked for twice."""

    @contextmanager
    def one(self, host: str, before_waiting: Callable[[], None]) -> Iterator[None]:
        """Hold a slot of `host`; `before_waiting` when none is free at once. Raises `Stopped` and `OSError`."""
        slot = self._take(host)
        if slot is None:
            before_waiting()
        while slot is None:
            self._waiting()
            if self._stop.wait(_POLL_SECONDS):
                raise Stopped
            slot = self._take(host)
        try:
            yield
        finally:
            with self._guard:
                slot.release()
                self._held.discard(slot.path)

    def _take(self, host: str) -> FileLock | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._guard:
            for number in range(self._num_slots):
                path = self._folder / f"{quote(host, safe='')}.{number}.lock"
                if path in self._held:
                    continue
                slot = FileLock(path)
                try:
                    slot.acquire()
                except LockHeld:
                    continue
                self._held.add(path)
                return slot
        return None


class Limits:
    """What one worker's transfers keep to; without `slots` and without a limit of bytes, nothing."""

    def __init__(
        self, stop: threading.Event, bandwidth: Bandwidth | None = None, slots: HostSlots | None = None
    ) -> None:
        self._bandwidth = bandwidth or Bandwidth(stop)
        self._slots = slots

    @contextmanager
    def connection(self, host: str, before_waiting: Callable[[], None]) -> Iterator[None]:
        """The right to have one connection to `host`. Raises `Stopped` and `OSError`."""
        if self._slots is None:
            yield
            return
        with self._slots.one(host, before_waiting):
            yield

    def read_bytes(self, wanted: int) -> int:
        """How much of `wanted` to read at once."""
        return self._bandwidth.read_bytes(wanted)

    def spend(self, num_bytes: int) -> None:
        """Count bytes that came, and wait until more may come."""
        self._bandwidth.spend(num_bytes)
