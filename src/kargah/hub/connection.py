"""One GET as a transfer needs it: redirects by hand, the token to its origin alone, proxies of the environment.

Connections are kept for the next request. Not thread-safe: every fetching thread has its own `Connections`.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import truststore

from kargah import __version__
from kargah.hub.endpoint import Endpoint, Origin, is_private_address, is_private_host, origin_of
from kargah.hub.failure import EndpointFailed
from kargah.hub.job import TransferSettings
from kargah.hub.proxies import Proxy, ProxyNotSupported, connect_by_socks, proxy_of

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DRAINED_BYTES = 64 * 1024
"""A body that does not interest us is read up to here to keep its connection, which is closed otherwise."""


class ConnectionFailed(Exception):
    """No answer: refused, dropped, timed out, not HTTP. It may pass."""


@dataclass(slots=True)
class Answer:
    """An answer whose body has not been read. `num_redirects` 0 means the endpoint itself answered."""

    status: int
    num_redirects: int
    hub_headers: Mapping[str, str]
    """Headers of the endpoint's own answer, lower case: the redirect carries what the storage behind it does not."""
    headers: Mapping[str, str]
    body: http.client.HTTPResponse

    def read(self, num_bytes: int) -> bytes:
        """The next bytes of the body as they come, at most `num_bytes`; empty at its end. Raises `ConnectionFailed`."""
        try:
            return self.body.read1(num_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionFailed(f"{type(error).__name__}: {error}") from error

    def read_into(self, space: memoryview) -> int:
        """The next bytes of the body as they come, put into `space` (not empty) without a copy in between.

        Returns how many; 0 at the body's end. It waits for the first byte and never for `space` to be full, so a slow
        link shows small steps. Raises `ConnectionFailed`.
        """
        body = self.body
        if body.chunked or body.length is None or body.isclosed():
            chunk = self.read(len(space))
            space[: len(chunk)] = chunk
            return len(chunk)
        if body.length == 0:
            return 0
        try:
            # `HTTPResponse.readinto` would wait for the whole space, and `read1` makes a new object of every piece.
            num_bytes = body.fp.readinto1(space[: body.length])
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionFailed(f"{type(error).__name__}: {error}") from error
        if num_bytes:
            body.length -= num_bytes
        else:
            body.close()
        return num_bytes


class Connections:
    """The open connections of one thread."""

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings
        self._open: dict[Origin, http.client.HTTPConnection] = {}
        self._private: set[Origin] = set()
        """Origins found to stand on a private address, whatever their name says."""
        self._in_use: tuple[Origin, http.client.HTTPConnection, http.client.HTTPResponse] | None = None

    def get(self, endpoint: Endpoint, url: str, headers: Mapping[str, str]) -> Answer:
        """GET `url`. See `ask`."""
        return self.ask("GET", endpoint, url, headers)

    def ask(self, method: str, endpoint: Endpoint, url: str, headers: Mapping[str, str]) -> Answer:
        """GET or HEAD `url`, following redirects. Whatever was answered before must have been read or is given up.

        Raises `ConnectionFailed` for what may pass, `EndpointFailed` (`HUB_UNREACHABLE`) for a redirect not to follow
        and (`PROXY_NOT_SUPPORTED`) for a proxy of the environment that is none.
        """
        self._let_go()
        hub_headers: Mapping[str, str] | None = None
        for num_redirects in range(self._settings.max_redirects + 1):
            body = self._request(method, endpoint, url, headers)
            answered = {name.lower(): value for name, value in body.getheaders()}
            hub_headers = hub_headers if hub_headers is not None else answered
            location = answered.get("location")
            if body.status not in _REDIRECTS or location is None:
                return Answer(body.status, num_redirects, hub_headers, answered, body)
            url = urljoin(url, location)
            self._check_redirect(endpoint, url)
            self._let_go()
        raise EndpointFailed("HUB_UNREACHABLE", "too many redirects", endpoint=endpoint.url)

    def close(self) -> None:
        """Close every connection."""
        self._in_use = None
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def interrupt(self) -> None:
        """From another thread: end every read that stands still."""
        for connection in list(self._open.values()):
            _shut(connection)

    def drop(self) -> None:
        """Close the connection of the last answer, read or not."""
        if self._in_use is not None:
            origin, connection, _ = self._in_use
            self._in_use = None
            connection.close()
            self._open.pop(origin, None)

    def _let_go(self) -> None:
        """Make the last answer's connection free for another request, or close it."""
        if self._in_use is None:
            return
        response = self._in_use[2]
        try:
            length = response.length
            if not response.isclosed() and (length is None or length > _DRAINED_BYTES):
                self.drop()
                return
            response.read()
        except (OSError, http.client.HTTPException):
            self.drop()
            return
        self._in_use = None

    def _request(
        self, method: str, endpoint: Endpoint, url: str, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        origin = origin_of(url)
        sent = {**headers, "Accept-Encoding": "identity", "User-Agent": f"kargah/{__version__}"}
        if endpoint.token is not None and origin == endpoint.origin:
            sent["Authorization"] = f"Bearer {endpoint.token}"
        proxy = _find_proxy(endpoint, origin)
        kept = self._open.get(origin)
        if kept is not None:
            try:
                return self._send(method, origin, proxy, kept, url, sent)
            except (OSError, http.client.HTTPException):
                # The server may have closed it meanwhile: that says nothing about a new one.
                kept.close()
                self._open.pop(origin, None)
        connection = self._connect(endpoint, origin, proxy)
        self._open[origin] = connection
        try:
            return self._send(method, origin, proxy, connection, url, sent)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._open.pop(origin, None)
            raise ConnectionFailed(f"{origin[1]}: {type(error).__name__}: {error}") from error

    def _send(
        self,
        method: str,
        origin: Origin,
        proxy: Proxy | None,
        connection: http.client.HTTPConnection,
        url: str,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = dict(headers)
        if proxy is not None and not proxy.is_socks and origin[0] == "http":
            # A plain request goes to the proxy as a whole address (RFC 9112 3.2.2).
            target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
            sent["Host"] = parts.netloc.rpartition("@")[2]
            sent.update(proxy.authorization)
        connection.request(method, target, headers=sent)
        # A socket's own limit is renewed by every byte, so a head that trickles would never end.
        watch = threading.Timer(self._settings.head_timeout_seconds, _shut, [connection])
        watch.daemon = True
        watch.start()
        try:
            response = connection.getresponse()
        finally:
            watch.cancel()
        self._in_use = (origin, connection, response)
        return response

    def _connect(self, endpoint: Endpoint, origin: Origin, proxy: Proxy | None) -> http.client.HTTPConnection:
        scheme, host, port = origin
        first_host, first_port = (proxy.host, proxy.port) if proxy is not None else (host, port)
        timeout = self._settings.connect_timeout_seconds
        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if scheme == "https" else None
        connection: http.client.HTTPConnection
        if context is not None:
            connection = http.client.HTTPSConnection(first_host, first_port, timeout=timeout, context=context)
            if proxy is not None and not proxy.is_socks:
                connection.set_tunnel(host, port, headers=dict(proxy.authorization))
        else:
            connection = http.client.HTTPConnection(first_host, first_port, timeout=timeout)
        # A connection that ended is made again here, where its peer is looked at.
        connection.auto_open = 0
        address: str | None = None
        try:
            if proxy is not None and proxy.is_socks:
                # To the connection it is as if the hub itself stood there: host and port name it in every request.
                connection.host, connection.port = host, port
                passage, address = connect_by_socks(proxy, host, port, timeout)
                connection.sock = passage
                if context is not None:
                    connection.sock = context.wrap_socket(passage, server_hostname=host)
            else:
                connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ConnectionFailed(f"{first_host}:{first_port}: {type(error).__name__}: {error}") from error
        if proxy is None:
            address = connection.sock.getpeername()[0]
        connection.sock.settimeout(self._settings.idle_timeout_seconds)
        if address is not None and is_private_address(address):
            self._private.add(origin)
            if origin != endpoint.origin:
                # A public name may resolve to a private address; the name alone does not tell.
                try:
                    self._refuse_private(endpoint, host)
                except EndpointFailed:
                    connection.close()
                    raise
        return connection

    def _check_redirect(self, endpoint: Endpoint, url: str) -> None:
        try:
            host = origin_of(url)[1]
        except ValueError as error:
            raise EndpointFailed("HUB_UNREACHABLE", f"a redirect to {url!r}", endpoint=endpoint.url) from error
        if is_private_host(host):
            self._refuse_private(endpoint, host)

    def _refuse_private(self, endpoint: Endpoint, host: str) -> None:
        is_private = endpoint.is_private or endpoint.origin in self._private
        if not (self._settings.allow_private_redirects or is_private):
            detail = f"a redirect to a private address was refused: {host}"
            raise EndpointFailed("HUB_UNREACHABLE", detail, endpoint=endpoint.url)


def _shut(connection: http.client.HTTPConnection) -> None:
    """From another thread: end whatever is read from a connection."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            # Not the method of a TLS socket, which would take its state away under the reader.
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _find_proxy(endpoint: Endpoint, origin: Origin) -> Proxy | None:
    try:
        return proxy_of(origin)
    except ProxyNotSupported as error:
        raise EndpointFailed(
            "PROXY_NOT_SUPPORTED", str(error), endpoint=endpoint.url, variable=error.variable, scheme=error.scheme
        ) from error
