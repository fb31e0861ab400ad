"""Each hub endpoint, step by step: which one fails, and why; its latency and how fast a small file comes.

The steps are name, connection, TLS (at the proxy where one stands between), an answer over HTTP by the connection that
downloads use, and whether what answers is a hub. Facts and reasons hold no host name, no path and no token.
"""

import json
import socket
import ssl
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kargah.ground.errors import Offline, invalid
from kargah.ground.settings import PUBLIC_HUB, Settings
from kargah.hub.connection import Answer, ConnectionFailed, Connections
from kargah.hub.endpoint import Endpoint, configured_endpoints, is_private_host
from kargah.hub.failure import EndpointFailed
from kargah.hub.first_steps import STEP_SECONDS, Facts, StepFailed, first_hop, reach, reason_of, unmeasured
from kargah.hub.job import TransferSettings
from kargah.hub.proxies import ProxyFailed
from kargah.text.languages import Language
from kargah.text.messages import Sentence, translate
from kargah.text.sizes import human_size

STEPS = ("proxy", "dns", "tcp", "tls", "http", "hub")
ANSWER_SECONDS = 15.0
NUM_CALLS = 3
MAX_JSON_BYTES = 4_000_000
MAX_FILE_BYTES = 16_000_000
MAX_READ_BYTES, MAX_READ_SECONDS = 8_000_000, 3.0
MIN_TIMED_BYTES = 256_000
"""A file smaller than this tells the latency and not the speed."""
_ASKED_REPOS = 3


@dataclass(slots=True)
class Reached:
    """One endpoint after its test. `failed_step` and `reason` are None when every step went well."""

    endpoint: Endpoint
    failed_step: str | None = None
    reason: str | None = None
    facts: Facts = field(default_factory=dict)
    """What was measured, by camelCase names."""

    @property
    def is_usable(self) -> bool:
        return self.failed_step is None

    @property
    def latency_ms(self) -> float | None:
        """Milliseconds of a call of the API over an open connection."""
        seconds = self.facts.get("latencySeconds")
        return round(seconds * 1000, 1) if seconds is not None else None

    @property
    def bytes_per_second(self) -> int | None:
        speed = self.facts.get("bytesPerSecond")
        return int(speed) if speed is not None else None

    def message(self, language: Language) -> str:
        """What was found, for a person."""
        if self.failed_step is not None:
            refused = self.facts.get("status") in (401, 403)
            key = "unauthorized" if refused and self.failed_step == "http" else self.failed_step
            return translate(f"mirrors.failed.{key}", language, reason=self.reason)
        speed = self.bytes_per_second
        sent = Sentence("mirrors.speed", speed=f"{human_size(speed)}/s") if speed is not None else ""
        return translate("mirrors.usable", language, latency=f"{self.latency_ms:.0f} ms", speed=sent)


def try_configured(
    settings: Settings, repo_ids: Sequence[str], url: str | None = None, *, with_speed: bool = True
) -> list[Reached]:
    """Test every endpoint of the settings, or the one at `url`; `repo_ids` are models that hubs should have.

    Raises `Offline`, and `ValidationFailed` for an address that is not configured: nobody may send us elsewhere.
    """
    if settings.offline:
        raise Offline()
    endpoints = configured_endpoints(settings)
    if url is not None:
        endpoints = tuple(endpoint for endpoint in endpoints if endpoint.url == url.strip().rstrip("/"))
        if not endpoints:
            raise invalid("url", "problem.endpointNotConfigured")
    return [
        try_endpoint(
            endpoint, repo_ids, allow_private_redirects=settings.allow_private_redirects, with_speed=with_speed
        )
        for endpoint in endpoints
    ]


def try_endpoint(
    endpoint: Endpoint, repo_ids: Sequence[str], *, allow_private_redirects: bool = False, with_speed: bool = True
) -> Reached:
    """Test one endpoint, in at most about a minute; without `with_speed` no file is fetched."""
    scheme, host, port = endpoint.origin
    facts: Facts = {
        "isDefault": endpoint.url == PUBLIC_HUB,
        "scheme": scheme,
        "port": port,
        "isPrivate": is_private_host(host),
        "hasToken": endpoint.token is not None,
    }
    reached = Reached(endpoint, facts=facts)
    connections = Connections(
        TransferSettings(
            connect_timeout_seconds=STEP_SECONDS,
            idle_timeout_seconds=10.0,
            allow_private_redirects=allow_private_redirects,
        )
    )
    try:
        hop = first_hop(endpoint)
        facts["usesProxy"] = hop.is_proxy
        reach(hop, facts)
        listed = _ask(connections, endpoint, facts)
        repo = _find_repo(connections, endpoint, [*repo_ids[: _ASKED_REPOS - 1], *_ids(listed)][:_ASKED_REPOS])
        facts["isHub"] = bool(_ids(listed)) or listed == [] or repo is not None
        if not facts["isHub"]:
            raise StepFailed("hub", f"what answers is no hub (HTTP {facts['status']})")
        if with_speed:
            _measure_speed(connections, endpoint, repo, facts)
    except StepFailed as failed:
        reached.failed_step, reached.reason = failed.step, failed.reason
    finally:
        connections.close()
    return reached


def _ask(connections: Connections, endpoint: Endpoint, facts: Facts) -> Any:
    """The JSON of a call of the API made several times, or None where it is none. Raises `StepFailed`."""
    seconds = []
    body = None
    for _ in range(NUM_CALLS):
        begun = time.perf_counter()
        answer = _get(connections, endpoint, f"{endpoint.url}/api/models?limit=1")
        body = _json(answer)
        seconds.append(time.perf_counter() - begun)
        facts["status"] = answer.status
        if answer.status >= 400:
            break
    if facts["status"] == 511:
        # Network Authentication Required (RFC 6585): somebody stands in between.
        raise StepFailed("hub", "what answers is no hub (HTTP 511)")
    if facts["status"] == 407:
        raise StepFailed("proxy", "HTTP 407")
    if facts["status"] in (401, 403, 429) or facts["status"] >= 500:
        raise StepFailed("http", f"HTTP {facts['status']}")
    facts["firstCallSeconds"] = seconds[0]
    facts["latencySeconds"] = statistics.median(seconds[1:] or seconds)
    return body


def _ids(listed: Any) -> list[str]:
    """The ids in a hub's list of models."""
    if not isinstance(listed, list):
        return []
    return [str(entry["id"]) for entry in listed if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def _find_repo(connections: Connections, endpoint: Endpoint, repo_ids: list[str]) -> Facts | None:
    """What the hub says of the first of these repositories that it has."""
    for repo_id in repo_ids:
        answer = _get(connections, endpoint, f"{endpoint.url}/api/models/{repo_id}?blobs=true")
        said = _json(answer)
        if answer.status == 200 and isinstance(said, dict) and isinstance(said.get("sha"), str):
            return {**said, "id": repo_id}
    return None


def _measure_speed(connections: Connections, endpoint: Endpoint, repo: Facts | None, facts: Facts) -> None:
    """Bytes a second of the largest file that is not too large, from its first byte on."""
    file = _largest_file(repo) if repo is not None else None
    if repo is None or file is None:
        unmeasured(facts, "bytesPerSecond", "no known repository with a small file")
        return
    url = endpoint.file_url("model", repo["id"], repo["sha"], file)
    answer = _get(connections, endpoint, url)
    facts["hasCommitHeader"] = "x-repo-commit" in answer.hub_headers
    if answer.status != 200:
        unmeasured(facts, "bytesPerSecond", f"HTTP {answer.status} for a file")
        return
    begun, read = time.perf_counter(), 0
    while read < MAX_READ_BYTES and time.perf_counter() - begun < MAX_READ_SECONDS:
        content = _read(answer)
        if not content:
            break
        read += len(content)
    seconds = time.perf_counter() - begun
    connections.drop()
    facts["downloadedBytes"] = read
    if read < MIN_TIMED_BYTES and seconds < MAX_READ_SECONDS:
        unmeasured(facts, "bytesPerSecond", "the file is too small to tell")
    else:
        facts["bytesPerSecond"] = read / seconds


def _largest_file(repo: Facts) -> str | None:
    siblings = repo.get("siblings")
    sizes = {
        str(entry["rfilename"]): entry["size"]
        for entry in (siblings if isinstance(siblings, list) else [])
        if isinstance(entry, dict) and "rfilename" in entry and isinstance(entry.get("size"), int)
    }
    small = [name for name, size in sizes.items() if 0 < size <= MAX_FILE_BYTES]
    return max(small, key=lambda name: sizes[name], default=None)


def _get(connections: Connections, endpoint: Endpoint, url: str) -> Answer:
    try:
        return connections.get(endpoint, url, {"Accept": "*/*"})
    except ConnectionFailed as error:
        raise _failure(error.__cause__) from error
    except EndpointFailed as error:
        # A network that asks for a login sends everybody on to a page of its own, which is often a private one.
        raise StepFailed("hub", "a redirect that is not followed") from error


def _failure(cause: BaseException | None) -> StepFailed:
    if isinstance(cause, ProxyFailed):
        return StepFailed("proxy", str(cause))
    if isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed"):
        # The words of `http.client` for an HTTP proxy that makes no tunnel, and the status.
        return StepFailed("proxy", str(cause))
    if isinstance(cause, socket.gaierror):
        # Through a proxy by SOCKS the first hop is the proxy, and the hub's own name comes after it.
        return StepFailed("dns", reason_of(cause))
    return StepFailed("tls" if isinstance(cause, ssl.SSLError) else "http", reason_of(cause))


def _json(answer: Answer) -> Any:
    content, until = b"", time.monotonic() + ANSWER_SECONDS
    while part := _read(answer):
        content += part
        if len(content) > MAX_JSON_BYTES or time.monotonic() > until:
            return None
    try:
        return json.loads(content)
    except ValueError:
        return None


def _read(answer: Answer) -> bytes:
    try:
        return answer.read(256 * 1024)
    except ConnectionFailed as error:
        raise StepFailed("http", reason_of(error.__cause__)) from error
