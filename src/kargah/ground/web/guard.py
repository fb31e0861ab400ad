"""What stands before every route: who may ask (Host, Origin, token), what may be sent (type, size), and strict headers.

Host and Origin are checked because a page of any site can make a person's browser talk to a server on their own machine
(cross-site requests, DNS rebinding).
"""

import hmac
import ipaddress
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kargah.ground.errors import ForeignOrigin, KargahError, TooLarge, Unauthorized, Unavailable, ValidationFailed
from kargah.ground.web.envelope import failure, language_of

MAX_JSON_BYTES = 10_000_000
TOKEN_COOKIE = "kargah_token"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass
class GuardSettings:
    """What the guard goes by. `bound_host` is the address the server listens on."""

    bound_host: str = "127.0.0.1"
    token: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_upload_bytes: int = 2_000_000_000
    max_import_bytes: int = 100_000_000_000
    open_paths: frozenset[str] = frozenset({"/api/health"})
    upload_paths: frozenset[str] = frozenset({"/api/datasets/upload"})
    import_paths: frozenset[str] = frozenset({"/api/models/import", "/api/datasets/import"})
    draining: bool = field(default=False)


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: GuardSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        origin = self._listed_origin(request.headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api"):
                    headers.setdefault("Cache-Control", "no-store")
                if origin:
                    headers["Access-Control-Allow-Origin"] = origin
                    headers["Access-Control-Allow-Credentials"] = "true"
                    headers.add_vary_header("Origin")
            await send(message)

        try:
            self._check_place(request)
            if origin and request.method == "OPTIONS" and "access-control-request-method" in request.headers:
                await self._preflight(send_with_headers)
                return
            if self._settings.draining:
                raise Unavailable()
            self._check_token(request)
            limited = self._check_body(request, receive)
        except KargahError as error:
            await failure(error, language_of(request))(scope, receive, send_with_headers)
            return
        await self._app(scope, limited, send_with_headers)

    def _listed_origin(self, headers: Headers) -> str | None:
        origin = headers.get("origin")
        return origin if origin in self._settings.cors_origins else None

    def _check_place(self, request: Request) -> None:
        host = request.headers.get("host", "")
        name = _host_name(host)
        if not self._own_host(name) and not any(
            urlsplit(listed).netloc == host for listed in self._settings.cors_origins
        ):
            raise ForeignOrigin()
        origin = request.headers.get("origin")
        if origin is None or origin in self._settings.cors_origins:
            return
        if origin not in (f"http://{host}", f"https://{host}"):
            raise ForeignOrigin()

    def _own_host(self, name: str) -> bool:
        bound = self._settings.bound_host
        if name in LOOPBACK_NAMES or name == bound:
            return True
        if is_loopback(bound):
            return False
        # Rebinding needs a name; a bare address or this machine's own name cannot be pointed elsewhere.
        return _is_address(name) or name in {socket.gethostname(), socket.getfqdn()}

    def _check_token(self, request: Request) -> None:
        wanted = self._settings.token
        if wanted is None or request.url.path in self._settings.open_paths:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.cookies.get(TOKEN_COOKIE, "")
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise Unauthorized()

    def _check_body(self, request: Request, receive: Receive) -> Receive:
        length = request.headers.get("content-length")
        has_body = (length is not None and length != "0") or "transfer-encoding" in request.headers
        if request.method not in ("POST", "PUT", "PATCH", "DELETE") or not has_body:
            return receive
        is_import = request.url.path in self._settings.import_paths
        is_upload = is_import or request.url.path in self._settings.upload_paths
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != ("multipart/form-data" if is_upload else "application/json"):
            wanted = "multipart/form-data" if is_upload else "application/json"
            raise ValidationFailed(("Content-Type", "problem.contentType", {"expected": wanted}))
        limit = MAX_JSON_BYTES
        if is_upload:
            limit = self._settings.max_import_bytes if is_import else self._settings.max_upload_bytes
        if length is not None and length.isdigit() and int(length) > limit:
            raise TooLarge(limit=limit)
        return _limited(receive, limit)

    @staticmethod
    async def _preflight(send: Send) -> None:
        headers = [
            (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
            (b"access-control-allow-headers", b"authorization, content-type, accept-language, last-event-id"),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address the server is bound to."""
    if host == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _limited(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise TooLarge(limit=limit)
        return message

    return counted
