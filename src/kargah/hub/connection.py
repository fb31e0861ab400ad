"""One GET as a transfer needs it: redirects by hand, the token to its origin alone, proxies of the environment.

Connections are kept for the next request. Not thread-safe: every fetching thread has its own `Connections`.
"""

import base64
import http.client
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit

import truststore

from kargah import __version__
from kargah.hub.endpoint import DEFAULT_PORTS, Endpoint, Origin, is_private_address, is_private_host, origin_of
from kargah.hub.failure import EndpointFailed
from kargah.hub.job import TransferSettings

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


class Connections:
    """The open connections of one thread."""

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings
        self._open: dict[Origin, http.client.HTTPConnection] = {}
        self._private: set[Origin] = set()
        """Origins found to stand on a private address, whatever their name says."""
        self._in_use: tuple[Origin, http.client.HTTPConnection, http.client.HTTPResponse] | None = None

    def get(self, endpoint: Endpoint, url: str, headers: Mapping[str, str]) -> Answer:
        """GET `url`, following redirects. Whatever was answered before must have been read or is given up.

        Raises `ConnectionFailed` for what may pass, `EndpointFailed` (`HUB_UNREACHABLE`) for a redirect not to follow.
        """
        self._let_go()
        hub_headers: Mapping[str, str] | None = None
        for num_redirects in range(self._settings.max_redirects + 1):
            body = self._request(endpoint, url, headers)
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

    def _request(self, endpoint: Endpoint, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        origin = origin_of(url)
        sent = {**headers, "Accept-Encoding": "identity", "User-Agent": f"kargah/{__version__}"}
        if endpoint.token is not None and origin == endpoint.origin:
            sent["Authorization"] = f"Bearer {endpoint.token}"
        kept = self._open.get(origin)
        if kept is not None:
            try:
                return self._send(origin, kept, url, sent)
            except (OSError, http.client.HTTPException):
                # The server may have closed it meanwhile: that says nothing about a new one.
                kept.close()
                self._open.pop(origin, None)
        connection = self._connect(endpoint, origin)
        self._open[origin] = connection
        try:
            return self._send(origin, connection, url, sent)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._open.pop(origin, None)
            raise ConnectionFailed(f"{origin[1]}: {type(error).__name__}: {error}") from error

    def _send(
        self, origin: Origin, connection: http.client.HTTPConnection, url: str, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = dict(headers)
        proxy = _proxy_of(origin)
        if proxy is not None and origin[0] == "http":
            # A plain request goes to the proxy as a whole address (RFC 9112 3.2.2).
            target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
            sent["Host"] = parts.netloc.rpartition("@")[2]
            sent.update(proxy.authorization)
        connection.request("GET", target, headers=sent)
        response = connection.getresponse()
        self._in_use = (origin, connection, response)
        return response

    def _connect(self, endpoint: Endpoint, origin: Origin) -> http.client.HTTPConnection:
        scheme, host, port = origin
        proxy = _proxy_of(origin)
        first_host, first_port = (proxy.host, proxy.port) if proxy is not None else (host, port)
        timeout = self._settings.connect_timeout_seconds
        connection: http.client.HTTPConnection
        if scheme == "https":
            context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            connection = http.client.HTTPSConnection(first_host, first_port, timeout=timeout, context=context)
            if proxy is not None:
                connection.set_tunnel(host, port, headers=dict(proxy.authorization))
        else:
            connection = http.client.HTTPConnection(first_host, first_port, timeout=timeout)
        # A connection that ended is made again here, where its peer is looked at.
        connection.auto_open = 0
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ConnectionFailed(f"{first_host}:{first_port}: {type(error).__name__}: {error}") from error
        connection.sock.settimeout(self._settings.idle_timeout_seconds)
        if proxy is None and is_private_address(connection.sock.getpeername()[0]):
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


@dataclass(frozen=True, slots=True)
class _Proxy:
    host: str
    port: int
    authorization: Mapping[str, str]


def _proxy_of(origin: Origin) -> _Proxy | None:
    """The proxy the environment names for an origin (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`)."""
    scheme, host, port = origin
    proxies = urllib.request.getproxies_environment()
    address = proxies.get(scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConnectionFailed(f"a proxy that is not reached by http is not supported: {parts.scheme}")
    authorization = {}
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization["Proxy-Authorization"] = "Basic " + base64.b64encode(secret).decode("ascii")
    return _Proxy(parts.hostname, parts.port or DEFAULT_PORTS["http"], authorization)
