"""The connection to one server: envelope in, data out, and what may be tried again.

- What reads is asked again after a broken connection and after 429, 502, 503 and 504.
- What changes something is asked again only when it cannot have been done: the connection was never made, or the server
  answered 429 or 503. A lost answer is `AnswerLost`. Routes marked `repeatable` are treated like those that read.
- A client that the server has answered once waits for it as long as its patience; one that never was gives up soon, for
  then the address is likely wrong.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from kargah import __version__
from kargah.client.errors import (
    AnswerLost,
    ApiError,
    NotFound,
    ServerUnreachable,
    UnexpectedAnswer,
    api_error,
)
from kargah.client.patience import Patience, retry_after
from kargah.client.routes import Route
from kargah.text.languages import Language
from kargah.text.messages import translate

STRANGER_PATIENCE_SECONDS = 1.0
CONNECT_SECONDS = 10.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# No byte of the request can have reached the server.
_NOT_MADE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_TOOK_NOTHING: frozenset[int] = frozenset({429, 503})
_PASSING = _TOOK_NOTHING | {502, 504}

T = TypeVar("T")

_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


class Connection:
    """Sends requests to one server; usable from several threads."""

    def __init__(
        self, url: str, token: str | None, language: Language, timeout_seconds: float, patience_seconds: float
    ) -> None:
        self.url = url.rstrip("/")
        self._language = language
        self._patience_seconds = patience_seconds
        self._timeout_seconds = timeout_seconds
        headers = {"Accept-Language": language, "User-Agent": f"kargah/{__version__}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            # A server on this machine is ours: no proxy of the environment stands in between.
            loopback = httpx.URL(self.url).host in LOOPBACK
            self._http = httpx.Client(
                base_url=self.url, headers=headers, timeout=self.timeout(timeout_seconds), trust_env=not loopback
            )
        except httpx.InvalidURL as error:
            raise self.unreachable() from error
        self._answered = False

    def data(
        self, route: Route, kind: type[T], *, body: Any = None, query: Mapping[str, Any] | None = None, **places: str
    ) -> T:
        """`data` of an answer, as a `kind`. Raises `ApiError`, `ServerUnreachable`."""
        request = {} if body is None else {"json": body}
        path = route.at(**places)
        answer = self.answer(route.method, path, repeatable=route.repeatable, params=given(query), **request)
        return self.parsed(kind, answer["data"])

    def pages(self, route: Route, kind: type[T], query: Mapping[str, Any], page_size: int) -> Iterator[T]:
        """Every row of a long list, asked for page by page as they are read."""
        cursor: str | None = None
        while True:
            params = given({**query, "limit": page_size, "cursor": cursor})
            answer = self.answer(route.method, route.path, params=params)
            yield from self.parsed(list[kind], answer["data"])  # type: ignore[valid-type]
            cursor = (answer.get("page") or {}).get("next")
            if cursor is None:
                return

    def answer(self, method: str, path: str, *, repeatable: bool = False, **request: Any) -> dict[str, Any]:
        """The whole envelope of a good answer. Raises `ApiError`, `ServerUnreachable`."""
        harmless = repeatable or method in ("GET", "HEAD")
        passing = _PASSING if harmless else _TOOK_NOTHING if _rereadable(request) else frozenset()
        patience = self.patience()
        while True:
            after = None
            try:
                response = self._http.request(method, path, **request)
            except _NOT_MADE as error:
                failure: ApiError | ServerUnreachable = self.unreachable(error)
            except httpx.TransportError as error:
                if not harmless:
                    raise AnswerLost(self.url, self._say("answerLost", url=self.url)) from error
                failure = self.unreachable(error)
            else:
                self._answered = True
                if response.status_code not in passing:
                    return self.opened(response)
                failure, after = self.refusal(response), retry_after(response)
            patience.pause(failure, retry_after_seconds=after)

    @contextmanager
    def reading(
        self, path: str, query: Mapping[str, Any], headers: Mapping[str, str], read_seconds: float
    ) -> Iterator[httpx.Response]:
        """An answer whose body is read bit by bit. Raises `Unavailable` for one that may come later, `ApiError`, and
        the `httpx.TransportError` of a connection that breaks."""
        timeout = self.timeout(read_seconds)
        with self._http.stream("GET", path, params=given(query), headers=headers, timeout=timeout) as response:
            self._answered = True
            if response.status_code >= 300:
                response.read()
                refusal = self.refusal(response)
                raise Unavailable(refusal, retry_after(response)) if response.status_code in _PASSING else refusal
            yield response

    def patience(self) -> Patience:
        """How long to try again, for one request or one stream."""
        stranger = min(self._patience_seconds, STRANGER_PATIENCE_SECONDS)
        return Patience(lambda: self._patience_seconds if self._answered else stranger)

    def timeout(self, read_seconds: float) -> httpx.Timeout:
        """The client's limits with another one for what is waited for: an answer, or the next part of it."""
        connect_seconds = min(self._timeout_seconds, CONNECT_SECONDS)
        return httpx.Timeout(self._timeout_seconds, connect=connect_seconds, read=read_seconds)

    def parsed(self, kind: type[T], value: Any) -> T:
        """A value of the wire as a record. Raises `UnexpectedAnswer`."""
        try:
            record: T = _adapter(kind).validate_python(value)
        except ValidationError as error:
            raise self.unexpected(200, str(error)) from error
        return record

    def opened(self, response: httpx.Response) -> dict[str, Any]:
        """The envelope in an answer. Raises `ApiError`."""
        body = _json_object(response)
        if body is None or body.get("ok") is not True or "data" not in body:
            raise self.refusal(response)
        return body

    def refusal(self, response: httpx.Response) -> ApiError:
        """The error that an answer tells of."""
        body = _json_object(response) or {}
        code, message = body.get("error"), body.get("message")
        if response.status_code >= 400 and isinstance(code, str) and isinstance(message, str):
            return api_error(response.status_code, code, message, body.get("details"))
        return self.unexpected(response.status_code, response.text[:200])

    def unexpected(self, status: int, seen: str) -> UnexpectedAnswer:
        """The error that tells of an answer that is none of ours."""
        message = self._say("unexpected", url=self.url, status=status)
        return UnexpectedAnswer(status, "UNEXPECTED_ANSWER", message, {"seen": seen})

    def gone(self, asset_id: str) -> NotFound:
        """The error that tells that an asset was here and is no more."""
        return NotFound(404, "ASSET_NOT_FOUND", self._say("gone", id=asset_id))

    def unreachable(self, cause: Exception | None = None) -> ServerUnreachable:
        """The error that tells that nobody answers."""
        error = ServerUnreachable(self.url, self._say("unreachable", url=self.url))
        error.__cause__ = cause
        return error

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def _say(self, key: str, **params: Any) -> str:
        return translate(f"client.{key}", self._language, **params)


class Unavailable(Exception):
    """An answer that tells to come back later. It never leaves this room: its `error` does."""

    def __init__(self, error: ApiError, retry_after_seconds: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_seconds = retry_after_seconds


def given(query: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A query without what is None; none at all where nothing is left, for an empty one would drop the path's own."""
    return {name: value for name, value in (query or {}).items() if value is not None} or None


def _rereadable(request: Mapping[str, Any]) -> bool:
    # A file that is told how much of it was read, say: sent again it would be a part of itself.
    files = request.get("files") or ()
    parts = files.values() if isinstance(files, Mapping) else [part for _, part in files]
    bodies = [part[1] if isinstance(part, tuple) else part for part in parts]
    return all(isinstance(body, str | bytes) or hasattr(body, "seek") for body in bodies)


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
