"""Each hub endpoint of the settings, step by step: which one fails, and why. No host name enters the facts.

The steps are name, connection, TLS (these three at the proxy where one stands between), an answer over HTTP by the
connection that downloads use, whether what answers is a hub, and how fast a small file comes.
"""

import json
import ssl
import statistics
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from kargah.app.doctor.findings import Examination, Facts, unmeasured
from kargah.app.doctor.reach import STEP_SECONDS, StepFailed, first_hop, reach, reason_of
from kargah.ground.settings import PUBLIC_HUB, Settings
from kargah.hub.connection import Answer, ConnectionFailed, Connections
from kargah.hub.endpoint import Endpoint, is_private_host
from kargah.hub.failure import EndpointFailed
from kargah.hub.job import TransferSettings
from kargah.text.languages import Language
from kargah.text.sizes import human_size

ANSWER_SECONDS = 15.0
NUM_CALLS = 3
MAX_JSON_BYTES = 4_000_000
MAX_FILE_BYTES = 16_000_000
MAX_READ_BYTES, MAX_READ_SECONDS = 8_000_000, 3.0
MIN_TIMED_BYTES = 256_000
"""A file smaller than this tells the latency and not the speed."""
_ASKED_REPOS = 3
_TRANSFER = TransferSettings(connect_timeout_seconds=STEP_SECONDS, idle_timeout_seconds=10.0)


def examine_hubs(settings: Settings, language: Language, repo_ids: list[str]) -> Examination:
    """Every endpoint in order. `repo_ids` are models whose files may be asked for. Offline, no socket is opened."""
    found = Examination(language)
    found.facts = {"isOffline": settings.offline, "proxies": proxies_in_use(), "endpoints": []}
    if settings.offline:
        found.find("hub", "ok", "hub.offline")
        return found
    for number, url in enumerate(settings.hub_endpoint, start=1):
        token = settings.hub_token.get_secret_value() if settings.hub_token and number == 1 else None
        facts = examine_endpoint(Endpoint(url, token), repo_ids)
        found.facts["endpoints"].append({"number": number, **facts})
        _tell(found, number, facts)
    return found


def examine_endpoint(endpoint: Endpoint, repo_ids: list[str]) -> Facts:
    """The facts of one endpoint; `failedStep` and `reason` are None when every step went well."""
    scheme, host, port = endpoint.origin
    facts: Facts = {
        "isDefault": endpoint.url == PUBLIC_HUB,
        "scheme": scheme,
        "port": port,
        "isPrivate": is_private_host(host),
        "hasToken": endpoint.token is not None,
        "failedStep": None,
        "reason": None,
    }
    connections = Connections(_TRANSFER)
    try:
        hop = first_hop(endpoint)
        facts["usesProxy"] = hop.is_proxy
        reach(hop, facts)
        listed = _ask(connections, endpoint, facts)
        repo = _find_repo(connections, endpoint, [*repo_ids[: _ASKED_REPOS - 1], *_ids(listed)][:_ASKED_REPOS])
        facts["isHub"] = bool(_ids(listed)) or listed == [] or repo is not None
        if not facts["isHub"]:
            raise StepFailed("hub", f"what answers is no hub (HTTP {facts['status']})")
        _measure_speed(connections, endpoint, repo, facts)
    except StepFailed as failed:
        facts["failedStep"], facts["reason"] = failed.step, failed.reason
    finally:
        connections.close()
    return facts


def proxies_in_use() -> list[Facts]:
    """The proxies of the environment: for what, by which scheme and port, never who or where."""
    found = []
    for kind, address in sorted(urllib.request.getproxies_environment().items()):
        if kind == "no":
            found.append({"for": "exceptions", "numNames": len([name for name in address.split(",") if name.strip()])})
            continue
        parts = urlsplit(address if "://" in address else f"http://{address}")
        found.append({"for": kind, "scheme": parts.scheme, "port": parts.port, "hasCredentials": bool(parts.username)})
    return found


def _tell(found: Examination, number: int, facts: Facts) -> None:
    if facts["failedStep"] is not None:
        found.find("hub", "warning", f"hub.{facts['failedStep']}", number=number, reason=facts["reason"])
        return
    latency = f"{facts['latencySeconds'] * 1000:.0f} ms"
    if facts["bytesPerSecond"] is None:
        found.find("hub", "ok", "hub.ok", number=number, latency=latency)
    else:
        speed = f"{human_size(int(facts['bytesPerSecond']))}/s"
        found.find("hub", "ok", "hub.okSpeed", number=number, latency=latency, speed=speed)


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
    if facts["status"] in (401, 403, 407, 429) or facts["status"] >= 500:
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
        cause = error.__cause__
        step = "tls" if isinstance(cause, ssl.SSLError) else "http"
        raise StepFailed(step, reason_of(cause)) from error
    except EndpointFailed as error:
        raise StepFailed("http", "a redirect that is not followed") from error


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
