"""The bytes of one file: ranged requests until the part is whole, then proof by digest, then a blob.

Every number is in `TransferSettings`. An endpoint that brings no new byte for its whole budget is given up and the next
one goes on from the same byte; the budget is renewed by every byte beyond the furthest one so far.
"""

import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kargah.hub.blobs import BlobStore, storage_failure
from kargah.hub.connection import Answer, ConnectionFailed, Connections
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import EndpointFailed, Stopped, TransferFailed, first_of
from kargah.hub.job import TransferSettings
from kargah.hub.limits import Limits
from kargah.hub.part import Part
from kargah.hub.plan import Plan, PlannedFile
from kargah.hub.progress import Meter
from kargah.hub.retry import Passing, backoff_seconds, passing_of
from kargah.spec.lock import FileLock, LockHeld

_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+|\*)$")
_LOCK_POLL_SECONDS = 0.2
QUICK_RETRIES = 2
"""Attempts in a row without a new byte at an endpoint while another one has not been tried yet."""
_MISSING = {"RepoNotFound": "REPO_NOT_FOUND", "RevisionNotFound": "REVISION_NOT_FOUND"}


class Endpoints:
    """The endpoints of a job in the order to try them, shared by its threads: what one learns spares the others."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._endpoints = endpoints
        self._given_up: set[str] = set()
        self._closed_until: dict[str, float] = {}

    def in_order(self, *, skip: int = 0) -> list[Endpoint]:
        """Those that were not given up first; `skip` rotates the order."""
        ordered = sorted(self._endpoints, key=lambda endpoint: endpoint.url in self._given_up)
        skip %= len(ordered)
        return ordered[skip:] + ordered[:skip]

    def give_up(self, endpoint: Endpoint) -> None:
        self._given_up.add(endpoint.url)

    def close_for(self, endpoint: Endpoint, seconds: float) -> None:
        """Nobody asks the endpoint again before `seconds` have passed."""
        self._closed_until[endpoint.url] = max(self._closed_until.get(endpoint.url, 0.0), time.monotonic() + seconds)

    def reopen(self) -> None:
        """Ask again at once, whatever was said before."""
        self._closed_until.clear()

    def seconds_until_open(self, endpoint: Endpoint) -> float:
        return max(0.0, self._closed_until.get(endpoint.url, 0.0) - time.monotonic())


class Transfer:
    """Fetches one file after another, for one thread."""

    def __init__(
        self,
        plan: Plan,
        endpoints: Endpoints,
        store: BlobStore,
        meter: Meter,
        settings: TransferSettings,
        stop: threading.Event,
        limits: Limits | None = None,
    ) -> None:
        self._plan = plan
        self._endpoints = endpoints
        self._store = store
        self._meter = meter
        self._settings = settings
        self._stop = stop
        self._limits = limits or Limits(stop)
        self._connections = Connections(settings)

    def close(self) -> None:
        self._connections.close()

    def interrupt(self) -> None:
        """From another thread: what stands still ends, and is asked for again."""
        self._connections.interrupt()

    def fetch(self, file: PlannedFile) -> None:
        """Bring a file's content among the blobs, unless it is there. Raises `TransferFailed` and `Stopped`."""
        try:
            with self._sole_writer(file) as alone:
                if alone:
                    self._fetch_alone(file)
            self._meter.place(file, file.size_bytes)
        except OSError as error:
            raise storage_failure(error, self._store, self._meter.remaining_bytes) from error

    @contextmanager
    def _sole_writer(self, file: PlannedFile) -> Iterator[bool]:
        """Hold the part's lock, or see the blob come while another worker does: then false."""
        path = self._store.lock(file.digest)
        lock = FileLock(path)
        seen = -1
        while not self._store.holds(file):
            if self._stop.is_set():
                raise Stopped
            try:
                lock.acquire()
            except LockHeld:
                length = self._store.held_bytes(file)
                self._meter.place(file, length)
                if length != seen:
                    self._meter.touch()
                seen = length
                self._stop.wait(_LOCK_POLL_SECONDS)
                continue
            try:
                yield not self._store.holds(file)
                # Whoever still has the old file open finds the blob in place and asks no further.
                path.unlink(missing_ok=True)
            finally:
                lock.release()
            return
        yield False

    def _fetch_alone(self, file: PlannedFile) -> None:
        found = ""
        for attempt in range(2):
            with Part(self._store, file, self._meter, self._stop) as part:
                resumed = part.resumed
                self._fill(part, file, skip=attempt)
                found = part.digest()
                if found == file.digest:
                    part.keep()
                    return
                part.restart()
            # A part that another process began may hold its damage; a straight transfer from one place proves the rest.
            if not resumed and len(self._endpoints.in_order()) == 1:
                break
        self._store.part(file.digest).unlink(missing_ok=True)
        raise TransferFailed(
            "CHECKSUM_MISMATCH",
            f"{file.path}: expected {file.digest}, got {found}",
            file=file.path,
            expected=file.digest,
            actual=found,
        )

    def _fill(self, part: Part, file: PlannedFile, *, skip: int) -> None:
        """Every endpoint in turn: with little patience as long as another one may be alive, then with all of it."""
        order = self._endpoints.in_order(skip=skip)
        rounds = [self._settings.idle_retries]
        if len(order) > 1:
            rounds.insert(0, min(QUICK_RETRIES, self._settings.idle_retries))
        for num_retries in rounds:
            failures: list[EndpointFailed] = []
            for endpoint in order:
                try:
                    self._fill_from(endpoint, part, file, num_retries)
                    return
                except EndpointFailed as failure:
                    self._connections.drop()
                    failures.append(failure)
                    if failure.code in ("HUB_UNREACHABLE", "HUB_RATE_LIMITED", "NOT_A_HUB"):
                        self._endpoints.give_up(endpoint)
            if not any(failure.code == "HUB_UNREACHABLE" for failure in failures):
                break
        raise first_of(failures)

    def _fill_from(self, endpoint: Endpoint, part: Part, file: PlannedFile, num_retries: int) -> None:
        failed = limited = 0
        while part.length < file.size_bytes:
            self._wait(self._endpoints.seconds_until_open(endpoint))
            furthest = part.furthest
            problem: Passing | None = None
            try:
                with self._limits.connection(endpoint.origin[1], self._connections.close):
                    self._ask(endpoint, part, file)
            except ConnectionFailed as error:
                problem = Passing(str(error))
            except Passing as error:
                problem = error
            if problem is not None:
                self._connections.drop()
            if part.furthest > furthest:
                failed = limited = 0
            if part.length == file.size_bytes:
                return
            if problem is not None and problem.rate_limited:
                limited += 1
            elif part.furthest == furthest:
                failed += 1
            self._give_up_or_wait(endpoint, failed, limited, problem, num_retries)

    def _give_up_or_wait(
        self, endpoint: Endpoint, failed: int, limited: int, problem: Passing | None, num_retries: int
    ) -> None:
        settings = self._settings
        detail = f"{endpoint.url}: {problem or 'the answer ended early'}"
        if limited > settings.rate_limit_retries:
            raise EndpointFailed("HUB_RATE_LIMITED", detail, endpoint=endpoint.url)
        if failed > num_retries:
            raise EndpointFailed(problem.code if problem else "HUB_UNREACHABLE", detail, endpoint=endpoint.url)
        if failed == limited == 0:
            # Bytes came before it broke: go on at once, but not in a tight loop.
            self._wait(0.1 * settings.first_backoff_seconds * random.random())
            return
        seconds = backoff_seconds(settings, max(failed, limited), random.random())
        if problem is not None and (problem.rate_limited or problem.retry_after is not None):
            seconds = min(max(seconds, problem.retry_after or 0.0), settings.max_retry_after_seconds)
            self._meter.waiting(seconds, rate_limited=True)
            self._endpoints.close_for(endpoint, seconds)
            return
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise Stopped

    def _ask(self, endpoint: Endpoint, part: Part, file: PlannedFile) -> None:
        """One request and its body. Ends normally when the body does, whole or not."""
        url = endpoint.file_url(self._plan.kind, self._plan.repo_id, self._plan.commit, file.path)
        headers = {"Range": f"bytes={part.length}-"} if part.length else {}
        answer = self._connections.get(endpoint, url, headers)
        if answer.status == 416:
            part.restart()
            raise Passing("the range was refused")
        if answer.status not in (200, 206):
            raise _problem_of(answer, endpoint, file)
        _check_content(answer, endpoint, file)
        if answer.status == 206:
            _check_range(answer, endpoint, file, part.length)
        else:
            if part.length:
                # The server ignored the range, or says 200 for a part of the file: then the whole is asked for.
                is_rest = answer.headers.get("content-length") == str(file.size_bytes - part.length)
                part.restart()
                if is_rest:
                    raise Passing("the rest was sent as if it were the whole")
            _check_length(answer, endpoint, file, file.size_bytes)
        while num_bytes := answer.read_into(part.space(self._limits.read_bytes(self._settings.chunk_bytes))):
            if part.length + num_bytes > file.size_bytes:
                part.restart()
                raise _refused(answer, endpoint, file, "sends more bytes than the file has")
            part.append(num_bytes)
            self._limits.spend(num_bytes)
            if self._stop.is_set():
                raise Stopped


def _problem_of(answer: Answer, endpoint: Endpoint, file: PlannedFile) -> Exception:
    """What an answer other than 200 and 206 means."""
    status = answer.status
    detail = f"answered {status} for {file.path}"
    if status == 511:
        # Network Authentication Required (RFC 6585): somebody stands in between.
        return EndpointFailed("NOT_A_HUB", f"{endpoint.url}: {detail}", endpoint=endpoint.url)
    passing = passing_of(status, answer.headers, detail)
    if passing is not None:
        return passing
    code = {401: "HUB_UNAUTHORIZED", 403: "HUB_UNAUTHORIZED", 404: "FILE_NOT_FOUND", 410: "FILE_NOT_FOUND"}.get(
        status, "HUB_UNREACHABLE"
    )
    if answer.num_redirects:
        # Signed addresses of storage expire, and a new one is asked for with every request.
        return Passing(f"storage {detail}", code=code)
    code = _MISSING.get(answer.headers.get("x-error-code", ""), code)
    return EndpointFailed(code, f"{endpoint.url}: {detail}", endpoint=endpoint.url, file=file.path)


def _check_content(answer: Answer, endpoint: Endpoint, file: PlannedFile) -> None:
    is_html = "html" in answer.headers.get("content-type", "").lower()
    if is_html and "x-repo-commit" not in answer.hub_headers and not file.path.lower().endswith((".html", ".htm")):
        raise EndpointFailed("NOT_A_HUB", f"{endpoint.url}: answered a page for {file.path}", endpoint=endpoint.url)
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise _refused(answer, endpoint, file, "is sent in a coding that was not asked for")


def _check_range(answer: Answer, endpoint: Endpoint, file: PlannedFile, start: int) -> None:
    match = _CONTENT_RANGE.match(answer.headers.get("content-range", ""))
    if match is None or int(match[1]) != start:
        raise _refused(answer, endpoint, file, "is sent from another byte than asked for")
    if match[3] not in ("*", str(file.size_bytes)) or int(match[2]) >= file.size_bytes:
        raise _refused(answer, endpoint, file, f"is said to have {match[3]} bytes")
    _check_length(answer, endpoint, file, int(match[2]) - start + 1)


def _check_length(answer: Answer, endpoint: Endpoint, file: PlannedFile, expected: int) -> None:
    length = answer.headers.get("content-length")
    if length is not None and length != str(expected):
        raise _refused(answer, endpoint, file, f"is announced with {length} bytes instead of {expected}")


def _refused(answer: Answer, endpoint: Endpoint, file: PlannedFile, problem: str) -> EndpointFailed:
    """An answer that cannot be the file."""
    code = "CHECKSUM_MISMATCH" if "x-repo-commit" in answer.hub_headers else "NOT_A_HUB"
    return EndpointFailed(
        code, f"{endpoint.url}: {file.path} {problem}", endpoint=endpoint.url, file=file.path, expected=file.digest
    )
