"""The bytes of the wheels: ranged requests until a part is whole, then proof by digest, then a rename.

A part lies beside its wheel and is named by the digest of what it will be, so nothing foreign is ever continued and no
`If-Range` is sent: entity tags differ between the machines of one index, and a tag that does not match would throw away
what came. Where the index states no digest, the tag of the first answer is kept beside the part and sent as `If-Range`
(RFC 9110 13.1.5), and the checksums inside the wheel are the proof. Everything is written as it comes: a kill at any
time costs at most what the operating system had not handed over.
"""

import errno
import hashlib
import os
import queue
import random
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import httpx

from kargah.app.setup.errors import IndexRefused, IndexUnreachable, NotAWheel, WheelMismatch, WheelsUnusable
from kargah.app.setup.network import Clients, Network
from kargah.app.setup.resolving import Wheel
from kargah.ground.errors import DiskFull
from kargah.hub.job import TransferSettings
from kargah.hub.retry import backoff_seconds, retry_after_seconds
from kargah.spec.layout import fsync_folder

_CONTENT_RANGE = re.compile(r"^bytes (\d+)-\d+/(?:\d+|\*)$")
_POLL_SECONDS = 0.1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PASSING = frozenset({408, 425, 429})

Item = TypeVar("Item")


@dataclass(slots=True)
class Arriving:
    """How far one wheel is. Written by the thread that fetches it, read by whoever watches."""

    wheel: Wheel
    length: int = 0
    done: bool = False
    begun: bool = False
    waiting_until: float = 0.0
    """Monotonic time until which a server asked us to wait."""


class Stopped(Exception):
    """Another wheel failed, or whoever watched has gone."""


class Fetcher:
    """Brings wheels into one folder, whose lock is the caller's."""

    def __init__(self, folder: Path, network: Network, settings: TransferSettings | None = None) -> None:
        self._folder = folder
        self._settings = settings or TransferSettings()
        self._clients = Clients(network, self._settings)
        self._stop = threading.Event()

    def close(self) -> None:
        """Close every connection."""
        self._clients.close()

    def sizes(self, wheels: Sequence[Wheel]) -> dict[str, int]:
        """Sizes by file name, of those that say theirs."""
        found: dict[str, int] = {}
        silent = threading.Event()

        def ask(wheel: Wheel) -> None:
            # It is a courtesy: where one question was in vain the others are not asked, and the fetching begins.
            if silent.is_set():
                return
            size = self._size(wheel)
            if size is None:
                silent.set()
            else:
                found[wheel.file] = size

        self._in_threads(ask, [wheel for wheel in wheels if wheel.size_bytes is None], lambda: None)
        return found

    def held_bytes(self, wheel: Wheel) -> int:
        """What of a wheel lies in the folder, whole or in part; not verified."""
        for path in (self._folder / wheel.file, self._part(wheel)):
            if path.is_file():
                return path.stat().st_size
        return 0

    def fetch(self, wheels: Sequence[Wheel], watch: Callable[[Sequence[Arriving]], None]) -> dict[str, str]:
        """Bring every wheel that is not there whole, the largest first. `watch` is called again and again meanwhile.

        Returns the SHA-256 of each by file name. Raises the first `SetupFailed` or `DiskFull`; what came is kept.
        """
        arriving = [Arriving(wheel, self.held_bytes(wheel)) for wheel in wheels]
        digests: dict[str, str] = {}

        def bring(one: Arriving) -> None:
            try:
                digests[one.wheel.file] = self._bring(one)
            except OSError as error:
                refuse_folder(error, self._folder)

        ordered = sorted(arriving, key=lambda one: one.wheel.size_bytes or 0, reverse=True)
        self._in_threads(bring, ordered, lambda: watch(arriving))
        return digests

    def _in_threads(self, work: Callable[[Item], None], items: Sequence[Item], watch: Callable[[], None]) -> None:
        """Daemon threads, so that an interrupt need not wait for a server that says nothing."""
        waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
        for item in items:
            waiting.put(item)
        failures: list[Exception] = []

        def run() -> None:
            while not self._stop.is_set():
                try:
                    work(waiting.get_nowait())
                except queue.Empty:
                    return
                except Stopped:
                    return
                except Exception as error:  # noqa: BLE001 - the thread's outermost edge: raised again below
                    failures.append(error)
                    self._stop.set()
                    return

        threads = [threading.Thread(target=run, daemon=True) for _ in range(self._settings.connections)]
        try:
            for thread in threads:
                thread.start()
            while alive := [thread for thread in threads if thread.is_alive()]:
                watch()
                if failures:
                    break
                alive[0].join(_POLL_SECONDS)
            watch()
        except BaseException:
            self._stop.set()
            raise
        if failures:
            raise failures[0]

    def _size(self, wheel: Wheel) -> int | None:
        if wheel.local is not None:
            return wheel.local.stat().st_size if wheel.local.is_file() else None
        try:
            answer = self._clients.at(wheel.url).head(wheel.url)
        except (httpx.HTTPError, httpx.InvalidURL):
            return None
        length = answer.headers.get("content-length", "")
        return int(length) if answer.status_code == 200 and length.isdigit() and not _is_page(answer) else None

    def _part(self, wheel: Wheel) -> Path:
        return (
            self._folder / f"{wheel.file}.{wheel.sha256[:16]}.part"
            if wheel.sha256
            else self._folder / f"{wheel.file}.part"
        )

    def _bring(self, one: Arriving) -> str:
        wheel, place = one.wheel, self._folder / one.wheel.file
        one.begun = True
        if place.is_file():
            found = digest_of(place)
            if found == wheel.sha256 or (wheel.sha256 is None and is_sound(place)):
                one.length, one.done = place.stat().st_size, True
                return found
            place.unlink()
        part = self._part(wheel)
        for attempt in range(2):
            began_at = part.stat().st_size if part.is_file() else 0
            if wheel.local is not None:
                self._copy(wheel.local, part, one)
            else:
                _Transfer(one, part, self._clients.at(wheel.url), self._settings, self._stop).run()
            found = digest_of(part)
            if found == wheel.sha256 or (wheel.sha256 is None and is_sound(part)):
                os.replace(part, place)
                _validator(part).unlink(missing_ok=True)
                fsync_folder(self._folder)
                one.done = True
                return found
            part.unlink()
            # A part may hold the damage of an earlier run; a transfer in one go leaves the index as the only suspect.
            if attempt or not began_at:
                break
        raise WheelMismatch(file=wheel.file, host=wheel.host)

    def _copy(self, source: Path, part: Path, one: Arriving) -> None:
        try:
            shutil.copyfile(source, part)
        except FileNotFoundError as error:
            raise IndexRefused(file=one.wheel.file, host=one.wheel.host, status=404) from error
        one.length = part.stat().st_size


class _Transfer:
    """One wheel into one part."""

    def __init__(
        self, one: Arriving, part: Path, client: httpx.Client, settings: TransferSettings, stop: threading.Event
    ) -> None:
        self._one = one
        self._part = part
        self._client = client
        self._settings = settings
        self._stop = stop
        self._size = one.wheel.size_bytes
        self._furthest = 0

    def run(self) -> None:
        """Ask until the part is whole. Its content is not verified."""
        handle = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._one.length = self._furthest = os.fstat(handle).st_size
            self._fill(handle)
            os.fsync(handle)
        finally:
            os.close(handle)

    def _fill(self, handle: int) -> None:
        wheel = self._one.wheel
        failed = limited = 0
        while self._size is None or self._one.length != self._size:
            furthest = self._furthest
            problem = _Passing("the answer ended early")
            try:
                if self._ask(handle):
                    return
            except (httpx.RequestError, httpx.InvalidURL) as error:
                problem = _Passing(f"{type(error).__name__}: {error}")
            except _Passing as passing:
                problem = passing
            if self._furthest > furthest:
                # Only a byte beyond the furthest so far is progress: a server that knows no ranges begins anew.
                failed = limited = 0
            elif problem.status == 429:
                limited += 1
            else:
                failed += 1
            if failed > self._settings.idle_retries or limited > self._settings.rate_limit_retries:
                raise IndexUnreachable(file=wheel.file, host=wheel.host, problem=str(problem))
            self._wait(max(failed, limited), problem.retry_after)

    def _wait(self, failed: int, asked_seconds: float | None) -> None:
        seconds = backoff_seconds(self._settings, failed, random.random()) if failed else 0.0
        if asked_seconds is not None:
            seconds = min(max(seconds, asked_seconds), self._settings.max_retry_after_seconds)
            self._one.waiting_until = time.monotonic() + seconds
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise Stopped

    def _ask(self, handle: int) -> bool:
        """One request and its body. True when the server said all there is."""
        wheel = self._one.wheel
        with self._client.stream("GET", wheel.url, headers=self._range(handle)) as answer:
            if answer.status_code == 416:
                self._restart(handle)
                raise _Passing("the range was refused")
            if answer.status_code not in (200, 206):
                self._refuse(answer)
            if _is_page(answer):
                raise NotAWheel(file=wheel.file, host=wheel.host)
            if answer.status_code == 200:
                self._restart(handle)
                self._keep_validator(answer)
            else:
                match = _CONTENT_RANGE.match(answer.headers.get("content-range", ""))
                if match is None or int(match[1]) != self._one.length:
                    self._restart(handle)
                    raise _Passing("another range came than was asked for")
            length = answer.headers.get("content-length", "")
            end = self._one.length + int(length) if length.isdigit() else self._size
            # As it comes: a chunk size would hold back bytes that a broken connection then loses.
            for chunk in answer.iter_raw():
                self._append(handle, chunk)
                if self._stop.is_set():
                    raise Stopped
            return end is None or self._one.length == end

    def _range(self, handle: int) -> dict[str, str]:
        if not self._one.length:
            return {}
        if self._one.wheel.sha256 is not None:
            return {"Range": f"bytes={self._one.length}-"}
        kept = _validator(self._part)
        if not kept.is_file():
            self._restart(handle)
            return {}
        return {"Range": f"bytes={self._one.length}-", "If-Range": kept.read_text(encoding="utf-8")}

    def _keep_validator(self, answer: httpx.Response) -> None:
        if self._one.wheel.sha256 is not None:
            return
        tag = answer.headers.get("etag", "")
        strong = tag if tag and not tag.startswith("W/") else answer.headers.get("last-modified", "")
        if strong:
            _validator(self._part).write_text(strong, encoding="utf-8")
        else:
            _validator(self._part).unlink(missing_ok=True)

    def _append(self, handle: int, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            written = os.write(handle, view)
            view = view[written:]
            self._one.length += written
        self._furthest = max(self._furthest, self._one.length)

    def _restart(self, handle: int) -> None:
        os.ftruncate(handle, 0)
        self._one.length = 0

    def _refuse(self, answer: httpx.Response) -> NoReturn:
        wheel, status = self._one.wheel, answer.status_code
        if status >= 500 or status in _PASSING:
            raise _Passing(f"HTTP {status}", status, retry_after_seconds(answer.headers.get("retry-after")))
        raise IndexRefused(file=wheel.file, host=wheel.host, status=status)


class _Passing(Exception):
    """A failure that may pass."""

    def __init__(self, detail: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sound(path: Path) -> bool:
    """Whether a wheel is a whole archive by its own checksums: what is left to ask when nobody stated a digest."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return False


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _is_page(answer: httpx.Response) -> bool:
    return "html" in answer.headers.get("content-type", "").lower()


def refuse_folder(error: OSError, folder: Path) -> NoReturn:
    """What a disk that refuses means. Raises `DiskFull` or `WheelsUnusable`."""
    if error.errno in _FULL:
        raise DiskFull(details={"freeBytes": shutil.disk_usage(folder).free}) from error
    raise WheelsUnusable(path=str(folder), problem=error.strerror or str(error)) from error
