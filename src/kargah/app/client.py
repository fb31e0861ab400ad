"""A small client of the HTTP API: envelope in, data out, streams as iterators that survive a broken connection."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from kargah.text.languages import Language

STREAM_TIMEOUT_SECONDS = 60.0
RECONNECT_SECONDS = 0.5


class ApiError(Exception):
    """The server refused or failed: `code`, a sentence, perhaps details."""

    def __init__(self, status: int, code: str, message: str, details: Any | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details


class ServerUnreachable(Exception):
    """Nobody answers at the server's address."""


class Client:
    """Talks to one server. `patience_seconds` is how long a broken stream is tried again before giving up."""

    def __init__(
        self, url: str, token: str | None = None, language: Language = "en", patience_seconds: float = 30.0
    ) -> None:
        headers = {"Accept-Language": language} | ({"Authorization": f"Bearer {token}"} if token else {})
        # The server is our own: a proxy from the environment must not stand in between.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30.0, trust_env=False)
        self._patience_seconds = patience_seconds

    def get(self, path: str, **params: Any) -> Any:
        """`data` of a GET. Raises `ApiError`, `ServerUnreachable`."""
        return self.answer("GET", path, params={k: v for k, v in params.items() if v is not None})["data"]

    def post(self, path: str, body: Any | None = None) -> Any:
        """`data` of a POST. Raises `ApiError`, `ServerUnreachable`."""
        return self.answer("POST", path, json=body)["data"]

    def delete(self, path: str, **params: Any) -> Any:
        """`data` of a DELETE. Raises `ApiError`, `ServerUnreachable`."""
        return self.answer("DELETE", path, params={k: v for k, v in params.items() if v is not None})["data"]

    def answer(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """The whole envelope of a good answer. Raises `ApiError`, `ServerUnreachable`."""
        try:
            response = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise ServerUnreachable(str(self._http.base_url)) from error
        return _opened(response)

    def stream(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Events of a stream to its end; a broken connection is made again behind the last event.

        Raises `ApiError`, and `ServerUnreachable` when nobody answers for `patience_seconds`.
        """
        last: str | None = None
        lost_at: float | None = None
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            try:
                with self._http.stream(
                    "GET",
                    path,
                    params=params,
                    headers=headers,
                    timeout=httpx.Timeout(10.0, read=STREAM_TIMEOUT_SECONDS),
                ) as response:
                    if response.status_code == 204:
                        return
                    if response.status_code == 503:
                        raise httpx.RemoteProtocolError("the server is restarting")
                    if response.status_code != 200:
                        response.read()
                        _opened(response)
                    lost_at = None
                    for event_id, data in _events(response.iter_lines(), last):
                        last = event_id
                        yield data
                        if data.get("status") in ("done", "error") or data.get("final"):
                            return
            except httpx.TransportError as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > self._patience_seconds:
                    raise ServerUnreachable(str(self._http.base_url)) from error
            time.sleep(RECONNECT_SECONDS)

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()


def _events(lines: Iterator[str], last: str | None) -> Iterator[tuple[str | None, dict[str, Any]]]:
    data: list[str] = []
    for line in lines:
        if line.startswith("id:"):
            last = line[3:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield last, json.loads("\n".join(data))
            data = []


def _opened(response: httpx.Response) -> dict[str, Any]:
    try:
        body: dict[str, Any] = response.json()
    except ValueError as error:
        raise ApiError(response.status_code, "INTERNAL", response.text[:200], None) from error
    if not body.get("ok"):
        raise ApiError(
            response.status_code, body.get("error", "INTERNAL"), body.get("message", ""), body.get("details")
        )
    return body
