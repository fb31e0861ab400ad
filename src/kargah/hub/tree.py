"""What a repository holds at a hub: its commit and its files, asked patiently, one endpoint after the other.

Asked over the connections of downloads: the same proxies, TLS, redirects by hand, the token to its origin alone. An
answer has an end, in bytes and in time. Refusals are read as the hub's own client reads them.
"""

import os

# Read when the client is imported. Xet would take the bytes past a mirror; the token is ours to give.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"

import dataclasses
import random
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kargah.hub.asking import Asking
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import EndpointFailed, Stopped, first_of
from kargah.hub.job import Job, TransferSettings
from kargah.hub.listing import Listing, one_size_a_digest
from kargah.hub.plan import Plan, PlannedFile, apply_pins
from kargah.hub.retry import Passing, backoff_seconds
from kargah.hub.selection import select

_HASTY_RETRIES = 2
_MAY_PASS = frozenset({"HUB_UNREACHABLE", "HUB_RATE_LIMITED"})


class Waits(Protocol):
    """Told when the hub makes us wait, so that a person sees why nothing moves."""

    def __call__(self, seconds: float, *, rate_limited: bool) -> None: ...


def resolve(job: Job, stop: threading.Event, waits: Waits) -> Plan:
    """The plan of a job, from the first endpoint that can give one.

    Raises `TransferFailed`, with the preferred endpoint's failure when none could, and `Stopped`.
    """
    settings = job.settings
    hasty = dataclasses.replace(
        settings,
        idle_retries=min(_HASTY_RETRIES, settings.idle_retries),
        rate_limit_retries=min(_HASTY_RETRIES, settings.rate_limit_retries),
    )
    # While another endpoint may answer at once, nobody is waited for long; when none did, all are, in a second round.
    rounds = [hasty, settings] if len(job.endpoints) > 1 else [settings]
    failures: dict[Endpoint, EndpointFailed] = {}
    for patience in rounds:
        for endpoint in job.endpoints:
            if endpoint in failures and failures[endpoint].code not in _MAY_PASS:
                continue
            try:
                return apply_pins(_resolve_at(endpoint, job, patience, stop, waits), job)
            except EndpointFailed as failure:
                failures[endpoint] = failure
    raise first_of(list(failures.values()))


def _resolve_at(endpoint: Endpoint, job: Job, settings: TransferSettings, stop: threading.Event, waits: Waits) -> Plan:
    """Ask one endpoint, again and again while its failures may pass."""
    failed = limited = 0
    while True:
        if stop.is_set():
            raise Stopped
        try:
            with Asking(endpoint, settings) as client:
                return _ask(client, endpoint, job)
        except Passing as error:
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


def _ask(client: Asking, endpoint: Endpoint, job: Job) -> Plan:
    revision = job.pins.commit or job.revision
    try:
        listing = Listing(client, endpoint, job.kind, job.repo_id)
        commit = listing.commit(revision)
        return _plan(listing, listing.files(commit), endpoint, job, commit)
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
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # Not JSON, or JSON of another shape than a hub's.
        raise _failed("NOT_A_HUB", endpoint, job, error) from error


def _plan(listing: Listing, files: Mapping[str, PlannedFile | None], endpoint: Endpoint, job: Job, commit: str) -> Plan:
    selection = select(job.kind, list(files), job.patterns)
    # What the catalog fixes is wanted, whatever the kind's own choice says.
    chosen = sorted({*selection.paths, *(path for path in job.pins.digests if path in files)})
    wanted = tuple(files[path] or listing.measured(commit, path) for path in chosen)
    one_size_a_digest(wanted)
    return Plan(
        repo_id=job.repo_id,
        kind=job.kind,
        endpoint=endpoint.url,
        commit=commit,
        files=wanted,
        needs_conversion=selection.needs_conversion,
        has_code=any(path.endswith(".py") for path in files),
    )


def _failed(code: str, endpoint: Endpoint, job: Job, error: Exception, **params: Any) -> EndpointFailed:
    detail = f"{endpoint.url}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return EndpointFailed(code, detail, endpoint=endpoint.url, repoId=job.repo_id, **params)


def _is_html(response: httpx2.Response) -> bool:
    return "html" in response.headers.get("Content-Type", "").lower()
