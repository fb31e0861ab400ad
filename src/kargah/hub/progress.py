"""How far a transfer is: exact bytes, speed over a window, and why nothing moves when nothing does."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kargah.hub.job import TransferSettings
from kargah.hub.plan import Plan, PlannedFile


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a transfer. `bytes_downloaded` = verified sizes + part lengths; `speed` in bytes per second.

    `phase` is `downloading`, `stalled` or `rateLimited`, the last with `until` (RFC 3339). `eta_seconds` is None unless
    bytes are coming.
    """

    bytes_downloaded: int
    speed: float
    eta_seconds: int | None
    file: str | None
    phase: str
    until: str | None = None


def moment_in(seconds: float) -> str:
    """The time `seconds` from now, RFC 3339 in UTC, to the second."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


class Meter:
    """Counts for all fetching threads. Safe to call from any of them."""

    def __init__(self, plan: Plan, settings: TransferSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = plan.total_bytes
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._lengths: dict[str, int] = {}
        self._sum = 0
        self._network = 0
        self._file: str | None = None
        self._active_at = clock()
        self._limited_at = -math.inf
        self._limited_until = -math.inf
        self._limited_until_text = ""
        self._samples: deque[tuple[float, int]] = deque([(self._active_at, 0)])

    @property
    def network_bytes(self) -> int:
        """Bytes of files that came over the network in this process."""
        return self._network

    @property
    def bytes_downloaded(self) -> int:
        return self._sum

    @property
    def remaining_bytes(self) -> int:
        return self._total - self._sum

    def place(self, file: PlannedFile, length: int) -> None:
        """Say how many bytes of a file are on disk, however they came there."""
        with self._lock:
            self._sum += length - self._lengths.get(file.digest, 0)
            self._lengths[file.digest] = length

    def received(self, file: PlannedFile, num_bytes: int) -> None:
        """Count bytes that came from the network and are on disk."""
        with self._lock:
            self._sum += num_bytes
            self._lengths[file.digest] = self._lengths.get(file.digest, 0) + num_bytes
            self._network += num_bytes
            self._file = file.path
            self._active_at = self._clock()

    def touch(self) -> None:
        """Something moves that is not the network: a part is hashed again, another worker writes it."""
        with self._lock:
            self._active_at = self._clock()

    def waiting(self, seconds: float, *, rate_limited: bool) -> None:
        """A server asked us to wait (`rate_limited`), or we wait by ourselves."""
        if rate_limited:
            with self._lock:
                self._limited_at = self._clock()
                self._limited_until = max(self._limited_until, self._limited_at + seconds)
                self._limited_until_text = moment_in(self._limited_until - self._limited_at)

    def hurried(self) -> str:
        """Nobody waits for a server any longer. Returns the phase until now."""
        with self._lock:
            phase, _ = self._phase(self._clock())
            self._limited_until = -math.inf
            return phase

    def read(self) -> Progress:
        """The present moment; also takes a sample for the speed, so it is called at even distances."""
        with self._lock:
            now = self._clock()
            phase, until = self._phase(now)
            speed = self._speed(now)
            eta = math.ceil((self._total - self._sum) / speed) if phase == "downloading" and speed > 0 else None
            return Progress(self._sum, speed, eta, self._file, phase, until)

    def _phase(self, now: float) -> tuple[str, str | None]:
        silent = now - self._active_at >= self._settings.stalled_after_seconds
        # Another file's bytes may still come while one server makes us wait.
        if now < self._limited_until and (silent or self._active_at <= self._limited_at):
            return "rateLimited", self._limited_until_text
        if silent:
            return "stalled", None
        return "downloading", None

    def _speed(self, now: float) -> float:
        self._samples.append((now, self._network))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._settings.speed_window_seconds:
            self._samples.popleft()
        since, before = self._samples[0]
        return (self._network - before) / (now - since) if now > since else 0.0
