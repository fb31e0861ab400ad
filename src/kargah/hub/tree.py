"""What a repository holds at a hub: its commit and its files, by the hub's own client with our retries around it.

The client is told its endpoint per call, follows no redirect by itself, sends the token to its origin alone and
raises at once what it would otherwise wait for. It is a setting of the whole process (`set_client_factory`), so this
belongs into the worker's process.
"""

import os

# Read when the client is imported. Xet would take the bytes past a mirror; the token is ours to give.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"

import random
import re
import threading
from typing import Any, Protocol

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from kargah import __version__
from kargah.hub.endpoint import Endpoint, is_private_address, is_private_host, origin_of
from kargah.hub.failure import EndpointFailed, Stopped, first_of
from kargah.hub.job import Job, TransferSettings
from kargah.hub.plan import Plan, PlannedFile, apply_pins
from kargah.hub.retry import backoff_seconds, retry_after_seconds
from kargah.hub.selection import check_paths, select

USER_AGENT = f"kargah/{__version__}"

_HEX = re.compile(r"^([0-9a-f]{40}|[0-9a-f]{64})$")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Waits(Protocol):
    """Told when the hub makes us wait, so that a person sees why nothing moves."""

    def __call__(self, seconds: float, *, rate_limited: bool) -> None: ...


def resolve(job: Job, stop: threading.Event, waits: Waits) -> Plan:
    """The plan of a job, from the first endpoint that can give one.

    Raises `TransferFailed`, with the preferred endpoint's failure when none could, and `Stopped`.
    """
    failures: list[EndpointFailed] = []
    for endpoint in job.endpoints:
        try:
            return apply_pins(_resolve_at(endpoint, job, stop, waits), job)
        except EndpointFailed as failure:
            failures.append(failure)
    raise first_of(failures)


class _Transient(Exception):
    """A failure that may pass: no connection, 5xx, 429."""

    def __init__(self, detail: str, *, rate_limited: bool = False, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.rate_limited = rate_limited
        self.retry_after = retry_after


class _Client(httpx2.Client):
    """The hub client's HTTP client, bound to one endpoint."""

    def __init__(self, endpoint: Endpoint, settings: TransferSettings) -> None:
        super().__init__(headers={"User-Agent": USER_AGENT})
        self._endpoint = endpoint
        self._settings = settings

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        options["follow_redirects"] = False
        for _ in range(self._settings.max_redirects + 1):
            response = self._send_one(request, options)
            if response.status_code not in _REDIRECTS or response.next_request is None:
                return response
            request = response.next_request
            self._check_redirect(str(request.url))
        raise EndpointFailed("HUB_UNREACHABLE", "too many redirects", endpoint=self._endpoint.url)

    def _send_one(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        request.headers.pop("Authorization", None)
        if self._endpoint.token is not None and origin_of(str(request.url)) == self._endpoint.origin:
            request.headers["Authorization"] = f"Bearer {self._endpoint.token}"
        # The client passes no time-out for some calls.
        request.extensions["timeout"] = httpx2.Timeout(
            self._settings.metadata_timeout_seconds, connect=self._settings.connect_timeout_seconds
        ).as_dict()
        try:
            response = super().send(request, **options)
        except httpx2.TransportError as error:
            raise _Transient(f"{request.url.host}: {type(error).__name__}: {error}") from error
        status = response.status_code
        if status == 429 or status >= 500 or status in (408, 425):
            raise _Transient(
                f"{request.url.host} answered {status}",
                rate_limited=status == 429,
                retry_after=retry_after_seconds(response.headers.get("Retry-After"), response.headers.get("RateLimit")),
            )
        return response

    def _check_redirect(self, url: str) -> None:
        if self._settings.allow_private_redirects or self._endpoint.is_private:
            return
        host = origin_of(url)[1]
        if is_private_host(host) or is_private_address(host):
            raise EndpointFailed(
                "HUB_UNREACHABLE", f"a redirect to a private address was refused: {host}", endpoint=self._endpoint.url
            )


def _resolve_at(endpoint: Endpoint, job: Job, stop: threading.Event, waits: Waits) -> Plan:
    """Ask one endpoint, again and again while its failures may pass."""
    settings = job.settings
    set_client_factory(lambda: _Client(endpoint, settings))
    api = HfApi(endpoint=endpoint.url, token=False)
    failed = limited = 0
    while True:
        if stop.is_set():
            raise Stopped
        try:
            return _ask(api, endpoint, job)
        except _Transient as error:
            if error.rate_limited:
                limited += 1
            else:
                failed += 1
            if failed > settings.idle_retries or limited > settings.rate_limit_retries:
                code = "HUB_RATE_LIMITED" if error.rate_limited else "HUB_UNREACHABLE"
                raise EndpointFailed(code, str(error), endpoint=endpoint.url) from error
            seconds = backoff_seconds(settings, max(failed, limited), random.random())
            if error.retry_after is not None:
                seconds = min(max(seconds, error.retry_after), settings.max_retry_after_seconds)
            waits(seconds, rate_limited=error.rate_limited or error.retry_after is not None)
            if stop.wait(seconds):
                raise Stopped from error


def _ask(api: HfApi, endpoint: Endpoint, job: Job) -> Plan:
    revision = job.pins.commit or job.revision
    url = endpoint.url
    try:
        info = api.repo_info(
            job.repo_id, repo_type=job.kind, revision=revision, timeout=job.settings.metadata_timeout_seconds
        )
        commit = info.sha
        if not isinstance(commit, str) or not _HEX.match(commit):
            raise EndpointFailed("NOT_A_HUB", f"{url} names no commit", endpoint=url)
        files = _list(api, job, commit)
    except GatedRepoError as error:
        raise _failed("HUB_UNAUTHORIZED", endpoint, job, error) from error
    except RevisionNotFoundError as error:
        raise _failed("REVISION_NOT_FOUND", endpoint, job, error, revision=revision) from error
    except RepositoryNotFoundError as error:
        # The client reads every 401 as "not found"; only the header says that it is.
        hidden = error.response.status_code in (401, 403) and error.response.headers.get("X-Error-Code") is None
        raise _failed("HUB_UNAUTHORIZED" if hidden else "REPO_NOT_FOUND", endpoint, job, error) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise _failed("HUB_UNAUTHORIZED", endpoint, job, error) from error
        if status == 404:
            is_hub = error.response.headers.get("X-Error-Code") is not None or not _is_html(error.response)
            raise _failed("REPO_NOT_FOUND" if is_hub else "NOT_A_HUB", endpoint, job, error) from error
        raise _failed("NOT_A_HUB", endpoint, job, error) from error
    except HFValidationError as error:
        raise _failed("REPO_NOT_FOUND", endpoint, job, error) from error
    except OfflineModeIsEnabled as error:
        raise _failed("HUB_UNREACHABLE", endpoint, job, error) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # Not JSON, or JSON of another shape than a hub's.
        raise _failed("NOT_A_HUB", endpoint, job, error) from error
    paths = [file.path for file in files]
    check_paths(paths)
    selection = select(job.kind, paths, job.patterns)
    # What the catalog fixes is wanted, whatever the kind's own choice says.
    chosen = {*selection.paths, *job.pins.digests}
    return Plan(
        repo_id=job.repo_id,
        kind=job.kind,
        endpoint=url,
        commit=commit,
        files=tuple(sorted((file for file in files if file.path in chosen), key=lambda file: file.path)),
        needs_conversion=selection.needs_conversion,
        has_code=any(path.endswith(".py") for path in paths),
    )


def _list(api: HfApi, job: Job, commit: str) -> list[PlannedFile]:
    """Every file of a commit. A small hub may know no tree: then the repository's own list of files is asked."""
    try:
        entries = api.list_repo_tree(job.repo_id, repo_type=job.kind, revision=commit, recursive=True)
        return [
            _planned(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        ]
    except HfHubHTTPError as error:
        if error.response.status_code != 404 or error.response.headers.get("X-Error-Code") is not None:
            raise
    info = api.repo_info(
        job.repo_id,
        repo_type=job.kind,
        revision=commit,
        files_metadata=True,
        timeout=job.settings.metadata_timeout_seconds,
    )
    return [
        _planned(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in getattr(info, "siblings", None) or []
    ]


def _planned(path: str, size: int | None, sha256: str | None, blob_id: str | None) -> PlannedFile:
    digest = f"sha256:{sha256}" if sha256 is not None else f"git-sha1:{blob_id}"
    algorithm, _, hexdigits = digest.partition(":")
    if not re.fullmatch(r"[0-9a-f]{64}" if algorithm == "sha256" else r"[0-9a-f]{40}", hexdigits):
        raise ValueError(f"{path} has no digest")
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"{path} has no size")
    return PlannedFile(str(path), size, digest)


def _failed(code: str, endpoint: Endpoint, job: Job, error: Exception, **params: Any) -> EndpointFailed:
    detail = f"{endpoint.url}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return EndpointFailed(code, detail, endpoint=endpoint.url, repoId=job.repo_id, **params)


def _is_html(response: httpx2.Response) -> bool:
    return "html" in response.headers.get("Content-Type", "").lower()
