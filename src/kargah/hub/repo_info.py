"""What a hub says of a repository: its card's facts and its files, without fetching any of them.

The hub's plain API (`/api/models/{id}`, `/api/datasets/{id}`) over the connections of downloads: proxies, TLS,
time-outs, redirects by hand, the token to its origin alone, both forms of `Retry-After`.
"""

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from kargah.assets.catalog import HUB_ID
from kargah.hub.connection import Answer, ConnectionFailed, Connections
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import EndpointFailed, Stopped
from kargah.hub.job import TransferSettings
from kargah.hub.retry import Passing, backoff_seconds, passing_of
from kargah.hub.transfer import Endpoints

PATIENCE = TransferSettings(idle_retries=3, rate_limit_retries=6)
"""As downloads have it, with fewer attempts: a person sits and waits for the answer."""

UNREACHABLE = frozenset({"HUB_UNREACHABLE", "HUB_RATE_LIMITED", "HUB_UNAUTHORIZED", "NOT_A_HUB", "PROXY_NOT_SUPPORTED"})
"""Codes of failures that say nothing about the repository."""

_MAX_BODY_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_BAD_TOKEN = "Invalid credentials in Authorization header"
_DISABLED = "Access to this resource is disabled."

Waits = Callable[[str, float], None]
"""Told the endpoint and the seconds when a hub makes us wait because of too many requests."""


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository; size and digest (`sha256:…`, `git-sha1:…`) only where they were asked for."""

    path: str
    size_bytes: int | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class RepoInfo:
    """A repository as a hub describes it. What the hub does not say is None or empty, never guessed."""

    id: str
    commit: str | None
    files: tuple[RepoFile, ...] | None
    private: bool = False
    disabled: bool = False
    gated: bool = False
    name: str | None = None
    licences: tuple[str, ...] = ()
    """Of the card, in lower case; a licence called `other` is followed by its name."""
    languages: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    architecture: str | None = None
    parameters: int | None = None
    needs_code: bool = False
    """Whether the model's config names code of the repository that must run."""


class Hub:
    """One endpoint, asked by several threads: a wait it demands, and that nobody is there, is learnt once for all."""

    def __init__(
        self, endpoint: Endpoint, settings: TransferSettings, stop: threading.Event, waits: Waits | None = None
    ) -> None:
        self.endpoint = endpoint
        self._settings = settings
        self._stop = stop
        self._waits = waits
        self._pauses = Endpoints((endpoint,))
        self._guard = threading.Lock()
        self._idle: list[Connections] = []
        self._num_answers = 0
        self._given_up: tuple[str, str] | None = None

    def info(self, kind: str, repo_id: str, revision: str | None = None, *, with_blobs: bool = False) -> RepoInfo:
        """What the hub says of a repository, at `revision` or as it is now; `with_blobs` with sizes and digests.

        Raises `Stopped` and `EndpointFailed`: a code of `UNREACHABLE`, or `REPO_NOT_FOUND`, `REVISION_NOT_FOUND`,
        `REPO_GATED`, `REPO_DISABLED`, each with the param `movedTo` when the hub sent us on to another id.
        """
        at = f"/revision/{quote(revision, safe='')}" if revision is not None else ""
        url = f"{self.endpoint.url}/api/{kind}s/{quote(repo_id)}{at}{'?blobs=true' if with_blobs else ''}"
        answer, body = self._get(url)
        moved_to = _moved_to(answer, kind, repo_id)
        if answer.status != 200:
            raise self._refusal(answer, body, revision, moved_to)
        try:
            return _parsed(json.loads(body), kind)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._failed("NOT_A_HUB", f"{_what(answer)}, which describes no repository") from error

    def close(self) -> None:
        """Close its connections; nobody may be asking."""
        for connections in self._idle:
            connections.close()
        self._idle.clear()

    def _get(self, url: str) -> tuple[Answer, bytes]:
        """An answer that says something, whole; asked again and again while failures may pass."""
        failed = limited = 0
        before = self._num_answers
        while True:
            self._wait(self._pauses.seconds_until_open(self.endpoint))
            if self._given_up is not None:
                raise self._failed(*self._given_up)
            try:
                with self._connections() as connections:
                    answer, body = self._get_once(connections, url)
            except ConnectionFailed as error:
                problem = Passing(str(error))
            except Passing as error:
                problem = error
            else:
                self._num_answers += 1
                return answer, body
            limited += problem.rate_limited
            failed += not problem.rate_limited
            if failed > self._settings.idle_retries or limited > self._settings.rate_limit_retries:
                code = "HUB_RATE_LIMITED" if problem.rate_limited else "HUB_UNREACHABLE"
                if self._num_answers == before:
                    # Nobody was answered all the while: the others need not find out for themselves.
                    self._given_up = (code, str(problem))
                raise self._failed(code, str(problem))
            self._pause(problem, max(failed, limited))

    def _get_once(self, connections: Connections, url: str) -> tuple[Answer, bytes]:
        try:
            answer = connections.get(self.endpoint, url, {"Accept": "application/json"})
            status = answer.status
            if status == 511:
                # Network Authentication Required (RFC 6585): somebody stands in between.
                raise self._failed("NOT_A_HUB", _what(answer))
            passing = passing_of(status, answer.headers, _what(answer))
            if passing is not None:
                raise passing
            return answer, self._read(answer)
        except (ConnectionFailed, Passing, EndpointFailed, Stopped):
            connections.drop()
            raise

    def _read(self, answer: Answer) -> bytes:
        body = bytearray()
        while chunk := answer.read(_CHUNK_BYTES):
            body += chunk
            if len(body) > _MAX_BODY_BYTES:
                raise self._failed("NOT_A_HUB", "its answer does not end")
            if self._stop.is_set():
                raise Stopped
        length = answer.headers.get("content-length", "")
        if length.isdigit() and len(body) < int(length):
            raise ConnectionFailed("the answer ended early")
        return bytes(body)

    def _pause(self, problem: Passing, attempt: int) -> None:
        seconds = backoff_seconds(self._settings, attempt, random.random())
        if problem.retry_after is not None:
            seconds = min(max(seconds, problem.retry_after), self._settings.max_retry_after_seconds)
        if problem.rate_limited:
            self._pauses.close_for(self.endpoint, seconds)
            if self._waits is not None:
                self._waits(self.endpoint.url, seconds)
        else:
            self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise Stopped

    @contextmanager
    def _connections(self) -> Iterator[Connections]:
        """Connections nobody else uses meanwhile, kept open for the next request."""
        with self._guard:
            connections = self._idle.pop() if self._idle else Connections(self._settings)
        try:
            yield connections
        finally:
            with self._guard:
                self._idle.append(connections)

    def _refusal(self, answer: Answer, body: bytes, revision: str | None, moved_to: str | None) -> EndpointFailed:
        """What an answer other than 200 means. A hub says 401 where a repository is private or does not exist."""
        status, said = answer.status, answer.headers.get("x-error-code")
        message = answer.headers.get("x-error-message", "")
        if said is None and ("html" in answer.headers.get("content-type", "").lower() or not _is_json(body)):
            return self._failed("NOT_A_HUB", f"{_what(answer)}, not as a hub does")
        if said == "GatedRepo":
            code = "REPO_GATED"
        elif message == _DISABLED:
            code = "REPO_DISABLED"
        elif said == "RevisionNotFound" or (status == 404 and said is None and revision is not None):
            code = "REVISION_NOT_FOUND"
        elif said == "RepoNotFound" or status in (404, 410) or (status == 401 and message != _BAD_TOKEN):
            code = "REPO_NOT_FOUND"
        elif status in (401, 403):
            code = "HUB_UNAUTHORIZED"
        else:
            code = "NOT_A_HUB"
        return self._failed(code, f"{_what(answer)}{': ' + message if message else ''}", moved_to)

    def _failed(self, code: str, detail: str, moved_to: str | None = None) -> EndpointFailed:
        return EndpointFailed(code, detail, endpoint=self.endpoint.url, movedTo=moved_to)


def _what(answer: Answer) -> str:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    return f"HTTP {answer.status}{f' ({kind})' if kind else ''}"


def _moved_to(answer: Answer, kind: str, repo_id: str) -> str | None:
    """The id that the endpoint's own redirect names, if it is another one."""
    place = urlsplit(answer.hub_headers.get("location", "")).path if answer.num_redirects else ""
    match = re.search(rf"/api/{kind}s/(.+?)(/revision/.*)?$", place)
    found = unquote(match[1]) if match else ""
    return found if found != repo_id and re.fullmatch(HUB_ID, found) else None


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body or b"{}")
    except ValueError:
        return False
    return True


def _parsed(value: Any, kind: str) -> RepoInfo:
    """The hub's JSON. Raises what a surprise raises; fields of the card may have any type, for people write them."""
    repo_id = value["id"]
    if not re.fullmatch(HUB_ID, repo_id):
        raise ValueError("no id")
    card = value["cardData"] if isinstance(value.get("cardData"), dict) else {}
    tags = _texts(value.get("tags"))
    config = value["config"] if isinstance(value.get("config"), dict) else {}
    siblings = value.get("siblings")
    commit = value.get("sha")
    return RepoInfo(
        id=repo_id,
        commit=commit if isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) else None,
        files=tuple(_file(sibling) for sibling in siblings) if siblings is not None else None,
        private=value.get("private") is True,
        disabled=value.get("disabled") is True,
        gated=value.get("gated") not in (None, False),
        name=next(iter(_texts(card.get("pretty_name"))), None),
        licences=_licences(card, tags),
        languages=_unique([*_texts(card.get("language")), *_tagged(tags, "language")]),
        tasks=_tasks(value, card, tags, kind),
        architecture=next(iter(_texts(config.get("model_type"))), None),
        parameters=_parameters(value.get("safetensors")),
        needs_code=bool(config.get("auto_map")),
    )


def _file(sibling: dict[str, Any]) -> RepoFile:
    size, lfs, blob_id = sibling.get("size"), sibling.get("lfs"), sibling.get("blobId")
    if isinstance(lfs, dict) and isinstance(lfs.get("sha256"), str):
        digest: str | None = f"sha256:{lfs['sha256']}"
    else:
        digest = f"git-sha1:{blob_id}" if isinstance(blob_id, str) else None
    return RepoFile(str(sibling["rfilename"]), size if isinstance(size, int) else None, digest)


def _licences(card: dict[str, Any], tags: list[str]) -> tuple[str, ...]:
    named = _texts(card.get("license")) or _tagged(tags, "license")
    if "other" in (name.lower() for name in named):
        named += _texts(card.get("license_name"))
    return _unique([name.lower() for name in named])


def _tasks(value: dict[str, Any], card: dict[str, Any], tags: list[str], kind: str) -> tuple[str, ...]:
    if kind == "dataset":
        asked = [*_texts(card.get("task_categories")), *_texts(card.get("task_ids"))]
        return _unique([*asked, *_tagged(tags, "task_categories"), *_tagged(tags, "task_ids")])
    return _unique([*(["chat"] if "conversational" in tags else []), *_texts(value.get("pipeline_tag"))])


def _parameters(safetensors: Any) -> int | None:
    total = safetensors.get("total") if isinstance(safetensors, dict) else None
    return total if isinstance(total, int) and total > 0 else None


def _tagged(tags: list[str], name: str) -> list[str]:
    return [tag.removeprefix(f"{name}:") for tag in tags if tag.startswith(f"{name}:")]


def _texts(value: Any) -> list[str]:
    """A text or the texts of a list."""
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def _unique(values: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
