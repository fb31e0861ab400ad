"""The proxies that the environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`) and the way through.

A proxy is reached by HTTP (`http://`) or by SOCKS (`socks5://`, `socks5h://`, `socks4://`, `socks4a://`). With
`socks5h` and `socks4a` the proxy resolves the hub's name, with `socks5` and `socks4` this machine does; `socks://`,
which desktops write, is `socks5h://`. Users and passwords enter no message.
"""

import base64
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import python_socks
from python_socks.sync import Proxy as SocksProxy

from kargah.hub.endpoint import DEFAULT_PORTS, Origin

_SOCKS = {
    "socks": (python_socks.ProxyType.SOCKS5, True),
    "socks5h": (python_socks.ProxyType.SOCKS5, True),
    "socks5": (python_socks.ProxyType.SOCKS5, False),
    "socks4a": (python_socks.ProxyType.SOCKS4, True),
    "socks4": (python_socks.ProxyType.SOCKS4, False),
}
_SOCKS_PORT = 1080


class ProxyNotSupported(Exception):
    """What the environment names is no proxy that can be used. `scheme` is what stands in front of its address."""

    def __init__(self, variable: str, scheme: str, problem: str) -> None:
        super().__init__(f"{variable}: {problem}")
        self.variable = variable
        self.scheme = scheme
        self.problem = problem


class ProxyFailed(OSError):
    """A SOCKS proxy could not be reached, or did not make the connection; the text says which, without any host."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy. Its user and password are in no representation of it."""

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)

    @property
    def is_socks(self) -> bool:
        return self.scheme in _SOCKS

    @property
    def authorization(self) -> Mapping[str, str]:
        """The header that an HTTP proxy is shown."""
        if self.username is None:
            return {}
        secret = f"{self.username}:{self.password}".encode()
        return {"Proxy-Authorization": "Basic " + base64.b64encode(secret).decode("ascii")}


def proxy_of(origin: Origin) -> Proxy | None:
    """The proxy for an origin, if the environment names one. Raises `ProxyNotSupported`."""
    scheme, host, port = origin
    proxies = urllib.request.getproxies_environment()
    kind = scheme if proxies.get(scheme) else "all"
    address = proxies.get(kind)
    if not address or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    return _read(f"{kind.upper()}_PROXY", address)


def proxies_in_use() -> list[dict[str, Any]]:
    """The proxies of the environment: for what, by which scheme and port, never who or where."""
    found: list[dict[str, Any]] = []
    for kind, address in sorted(urllib.request.getproxies_environment().items()):
        if kind == "no":
            found.append({"for": "exceptions", "numNames": len([name for name in address.split(",") if name.strip()])})
            continue
        try:
            proxy = _read(f"{kind.upper()}_PROXY", address)
        except ProxyNotSupported as error:
            found.append({"for": kind, "scheme": error.scheme, "isSupported": False})
            continue
        has_credentials = bool(proxy.username)
        found.append({"for": kind, "scheme": proxy.scheme, "port": proxy.port, "hasCredentials": has_credentials})
    return found


def connect_by_socks(proxy: Proxy, host: str, port: int, timeout_seconds: float) -> tuple[socket.socket, str | None]:
    """A connection to `host` through a SOCKS proxy, and the address of `host` where this machine resolved it.

    Raises `ProxyFailed`, and `OSError` where the name is not known here.
    """
    kind, resolves_there = _SOCKS[proxy.scheme]
    address = None if resolves_there else _address_of(host, port, only_v4=kind is python_socks.ProxyType.SOCKS4)
    way = SocksProxy(kind, proxy.host, proxy.port, proxy.username, proxy.password, rdns=resolves_there)
    try:
        return way.connect(address or host, port, timeout_seconds), address
    except python_socks.ProxyConnectionError as error:
        raise ProxyFailed(f"the SOCKS proxy cannot be reached ({_cause(error)})") from error
    except python_socks.ProxyTimeoutError as error:
        raise ProxyFailed("the SOCKS proxy did not answer in time") from error
    except python_socks.ProxyError as error:
        raise ProxyFailed(f"the SOCKS proxy made no connection ({error})") from error
    except (OSError, ValueError) as error:
        # What it answered was not SOCKS, or it hung up.
        raise ProxyFailed(f"the SOCKS proxy broke off ({type(error).__name__})") from error


def _read(variable: str, address: str) -> Proxy:
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        # The parser's own words would quote the password.
        raise ProxyNotSupported(variable, "", "its address cannot be read") from None
    if scheme != "http" and scheme not in _SOCKS:
        raise ProxyNotSupported(variable, scheme, f"a proxy by {scheme}:// is not supported")
    if not host:
        raise ProxyNotSupported(variable, scheme, "its address names no host")
    username = unquote(parts.username) if parts.username is not None else None
    default = DEFAULT_PORTS["http"] if scheme == "http" else _SOCKS_PORT
    return Proxy(scheme, host, port or default, username, unquote(parts.password or ""))


def _address_of(host: str, port: int, *, only_v4: bool) -> str:
    family = socket.AF_INET if only_v4 else socket.AF_UNSPEC
    try:
        found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError("not a host name") from error
    # Many proxies speak IPv4 alone.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])


def _cause(error: OSError) -> str:
    cause = error.__cause__
    return (cause.strerror or type(cause).__name__) if isinstance(cause, OSError) else type(error).__name__
