"""HTTP to a package index as pip would speak it: its credentials, certificate, proxy and trusted hosts, netrc, and the
proxies of the environment. Not covered: keyrings and client certificates."""

import netrc
import os
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import httpx
import truststore

from kargah import __version__
from kargah.app.setup.pip_program import IndexOptions, Pip
from kargah.hub.endpoint import Origin, origin_of
from kargah.hub.job import TransferSettings

_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_URL_OPTIONS = ("index-url", "extra-index-url", "find-links")


@dataclass(frozen=True, slots=True)
class Network:
    """How to reach what pip reported."""

    credentials: Mapping[Origin, tuple[str, str]]
    certificate: str | None
    proxy: str | None
    trusted_hosts: frozenset[str]

    def client(self, url: str, settings: TransferSettings) -> httpx.Client:
        """A client for one origin: it sends the credentials there and nowhere else, and follows redirects."""
        timeout = httpx.Timeout(settings.idle_timeout_seconds, connect=settings.connect_timeout_seconds)
        return httpx.Client(
            verify=False if self._trusts(url) else self._context(),
            proxy=self.proxy,
            timeout=timeout,
            auth=self._auth(url),
            follow_redirects=True,
            headers={"Accept-Encoding": "identity", "User-Agent": f"kargah/{__version__}"},
        )

    def _trusts(self, url: str) -> bool:
        _, host, port = origin_of(url)
        return host in self.trusted_hosts or f"{host}:{port}" in self.trusted_hosts

    def _context(self) -> ssl.SSLContext:
        context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.certificate is not None:
            if os.path.isdir(self.certificate):
                context.load_verify_locations(capath=self.certificate)
            else:
                context.load_verify_locations(cafile=self.certificate)
        return context

    def _auth(self, url: str) -> tuple[str, str] | None:
        origin = origin_of(url)
        return self.credentials.get(origin) or _from_netrc(origin[1])


class Clients:
    """Clients kept by origin, shared by threads: a handshake over a slow network is worth saving."""

    def __init__(self, network: Network, settings: TransferSettings) -> None:
        self._network = network
        self._settings = settings
        self._kept: dict[Origin, httpx.Client] = {}
        self._guard = threading.Lock()

    def at(self, url: str) -> httpx.Client:
        with self._guard:
            origin = origin_of(url)
            if origin not in self._kept:
                self._kept[origin] = self._network.client(url, self._settings)
            return self._kept[origin]

    def close(self) -> None:
        for client in self._kept.values():
            client.close()


def network_of(pip: Pip, index: IndexOptions) -> Network:
    """What pip's configuration and the options say."""
    configuration = pip.configuration
    urls = [*index.urls, *(url for option in _URL_OPTIONS for url in configuration.get(option, "").split())]
    bundle = next((os.environ[name] for name in _BUNDLES if os.environ.get(name)), None)
    return Network(
        credentials=_credentials(urls),
        certificate=configuration.get("cert") or bundle,
        proxy=configuration.get("proxy") or None,
        trusted_hosts=frozenset(configuration.get("trusted-host", "").lower().split()),
    )


def _credentials(urls: Iterable[str]) -> dict[Origin, tuple[str, str]]:
    found: dict[Origin, tuple[str, str]] = {}
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.username is not None:
            found.setdefault(origin_of(url), (unquote(parts.username), unquote(parts.password or "")))
    return found


def _from_netrc(host: str) -> tuple[str, str] | None:
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return (known[0], known[2] or "") if known else None
