"""The job of one worker: what to fetch, from where, to where. Read from the job file; nothing in it changes."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kargah.hub.endpoint import Endpoint, origin_of
from kargah.hub.failure import TransferFailed
from kargah.spec.layout import read_json, write_json

KINDS = ("model", "dataset")


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """Every number of a transfer. In the job file the names are camelCase."""

    connections: int = 16
    """Files fetched at the same time; of large ones, which fill the line by themselves, fewer are."""
    connections_per_host: int = 16
    """Connections to one host, of all workers on one blobs folder together."""
    bytes_per_second: int = 0
    """At most this much comes in, to begin with; 0 is no limit."""
    chunk_bytes: int = 256 * 1024
    """At most this much is read at once."""
    connect_timeout_seconds: float = 10.0
    metadata_timeout_seconds: float = 20.0
    head_timeout_seconds: float = 60.0
    """An answer whose status and headers are not here by then is given up."""
    idle_timeout_seconds: float = 20.0
    """Without a byte for so long, the connection is given up and made again."""
    stalled_after_seconds: float = 5.0
    """Without a byte on any connection for so long, the phase says `stalled`."""
    idle_retries: int = 8
    """Attempts in a row that brought no new byte before an endpoint is given up."""
    rate_limit_retries: int = 120
    """Answers 429 in a row before an endpoint is given up."""
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    max_retry_after_seconds: float = 900.0
    """A server that asks for a longer wait is asked again after this one."""
    max_redirects: int = 5
    allow_private_redirects: bool = False
    """Whether a public hub may redirect to a private or loopback address."""
    disk_margin_bytes: int = 256 * 1024 * 1024
    """Free space that must remain beside the bytes to come."""
    report_every_seconds: float = 0.25
    speed_window_seconds: float = 15.0
    lock_wait_seconds: float = 10.0
    """How long to wait for an older worker of the same download to die."""


@dataclass(frozen=True, slots=True)
class Pins:
    """What an approved entry fixes beforehand and no endpoint may contradict."""

    commit: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    """Path to digest, `sha256:…` or `git-sha1:…`."""


@dataclass(frozen=True, slots=True)
class Job:
    """One download. `patterns` choose files (`data/*.csv`); without them the kind's own choice applies."""

    repo_id: str
    kind: str
    endpoints: tuple[Endpoint, ...]
    blobs: Path
    target: Path
    revision: str | None = None
    pins: Pins = field(default_factory=Pins)
    patterns: tuple[str, ...] = ()
    settings: TransferSettings = field(default_factory=TransferSettings)

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the plan: a plan made for another question is made anew."""
        return {
            "repoId": self.repo_id,
            "kind": self.kind,
            "revision": self.revision,
            "patterns": list(self.patterns),
            "pins": {"commit": self.pins.commit, "digests": dict(self.pins.digests)},
        }


def read_job(path: Path) -> Job:
    """The job in a job file. Raises `TransferFailed` (`JOB_INVALID`)."""
    try:
        value = read_json(path)
        if not isinstance(value, dict):
            raise ValueError("the job file is missing or no object")
        return _job(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TransferFailed("JOB_INVALID", f"{type(error).__name__}: {error}") from error


def write_job(path: Path, job: Job, *, token_envs: Mapping[str, str] | None = None) -> None:
    """Write a job file. An endpoint's token is written as it is, or, with `token_envs` (url to name), by reference."""
    names = token_envs or {}
    write_json(
        path,
        {
            **job.asked,
            "endpoints": [
                {"url": endpoint.url, "tokenEnv": names[endpoint.url]}
                if endpoint.url in names
                else {"url": endpoint.url, "token": endpoint.token}
                for endpoint in job.endpoints
            ],
            "blobs": str(job.blobs),
            "target": str(job.target),
            "settings": {_camel(name): value for name, value in dataclasses.asdict(job.settings).items()},
        },
    )
    # It may hold a token.
    os.chmod(path, 0o600)


def _job(value: dict[str, Any]) -> Job:
    if value["kind"] not in KINDS:
        raise ValueError(f"kind is {value['kind']!r}")
    endpoints = tuple(_endpoint(entry) for entry in value["endpoints"])
    if not endpoints:
        raise ValueError("no endpoint")
    pins = value.get("pins") or {}
    return Job(
        repo_id=str(value["repoId"]),
        kind=value["kind"],
        endpoints=endpoints,
        blobs=Path(value["blobs"]),
        target=Path(value["target"]),
        revision=value.get("revision"),
        pins=Pins(commit=pins.get("commit"), digests=dict(pins.get("digests") or {})),
        patterns=tuple(value.get("patterns") or ()),
        settings=_settings(value.get("settings") or {}),
    )


def _endpoint(entry: dict[str, Any]) -> Endpoint:
    url = str(entry["url"]).rstrip("/")
    origin_of(url)
    token = entry.get("token")
    if token is None and entry.get("tokenEnv"):
        token = os.environ.get(entry["tokenEnv"])
    return Endpoint(url=url, token=token or None)


def _settings(value: dict[str, Any]) -> TransferSettings:
    names = {_camel(entry.name): entry.name for entry in dataclasses.fields(TransferSettings)}
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(unknown)}")
    return TransferSettings(**{names[name]: entry for name, entry in value.items()})


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)
