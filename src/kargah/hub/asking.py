"""How a repository is asked about at one endpoint: over the connections of downloads, so with their proxies and TLS,
redirects by hand and the token to its origin alone. What may pass is raised at once; an answer has bounds.
"""

import dataclasses
import time
import zlib
from types import TracebackType

import httpx2

from kargah.hub.connection import Answer, ConnectionFailed, Connections
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import EndpointFailed
from kargah.hub.job import TransferSettings
from kargah.hub.retry import Passing, passing_of

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""No honest answer is longer: a tree comes in pages."""
MAX_ANSWER_SECONDS = 180.0
"""An answer that trickles on for longer is given up."""

_CHUNK_BYTES = 256 * 1024
_OF_TRANSPORT = frozenset({"content-encoding", "transfer-encoding"})


class Asking:
    """The connections to one endpoint while its repository is looked at. Raises `Passing` and `EndpointFailed`."""

    def __init__(self, endpoint: Endpoint, settings: TransferSettings) -> None:
        self._endpoint = endpoint
        patience = dataclasses.replace(settings, idle_timeout_seconds=settings.metadata_timeout_seconds)
        self._connections = Connections(patience)

    def __enter__(self) -> "Asking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connections.close()

    def get(self, url: str) -> httpx2.Response:
        """The answer after every redirect, whole. Its `history` holds the endpoint's own answer where that was one."""
        return self._ask("GET", url)

    def head(self, url: str) -> httpx2.Response:
        """As `get`, without the body."""
        return self._ask("HEAD", url)

    def _ask(self, method: str, url: str) -> httpx2.Response:
        try:
            answer = self._connections.ask(method, self._endpoint, url, {"Accept": "*/*"})
            passing = passing_of(answer.status, answer.headers, f"{self._endpoint.url} answered {answer.status}")
            if passing is not None:
                raise passing
            body = self._decoded(answer, self._read(answer)) if method == "GET" else b""
        except ConnectionFailed as error:
            self._connections.drop()
            raise Passing(str(error)) from error
        except (Passing, EndpointFailed):
            self._connections.drop()
            raise
        request = httpx2.Request(method, url)
        # What the first one said of its own address; the numbers between do not matter.
        history = [httpx2.Response(302, headers=dict(answer.hub_headers), request=request)]
        headers = {name: value for name, value in answer.headers.items() if name not in _OF_TRANSPORT}
        return httpx2.Response(
            answer.status,
            headers=headers,
            content=body,
            request=request,
            history=history if answer.num_redirects else [],
        )

    def _read(self, answer: Answer) -> bytes:
        body, until = bytearray(), time.monotonic() + MAX_ANSWER_SECONDS
        while part := answer.read(_CHUNK_BYTES):
            body += part
            if len(body) > MAX_ANSWER_BYTES:
                raise EndpointFailed("NOT_A_HUB", "its answer does not end", endpoint=self._endpoint.url)
            if time.monotonic() > until:
                raise ConnectionFailed("the answer does not end")
        length = answer.headers.get("content-length", "")
        if length.isdigit() and len(body) < int(length):
            raise ConnectionFailed("the answer ended early")
        return bytes(body)

    def _decoded(self, answer: Answer, body: bytes) -> bytes:
        """The body as it was meant. A mirror may pack it though nobody asked; what it unpacks to has the same bound."""
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("", "identity"):
            return body
        try:
            if encoding not in ("gzip", "x-gzip", "deflate"):
                raise zlib.error(f"an answer in {encoding}")
            unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
            content = unpacking.decompress(body, MAX_ANSWER_BYTES)
        except zlib.error as error:
            raise EndpointFailed("NOT_A_HUB", str(error), endpoint=self._endpoint.url) from error
        if not unpacking.eof:
            raise EndpointFailed("NOT_A_HUB", "its packed answer does not end", endpoint=self._endpoint.url)
        return content
