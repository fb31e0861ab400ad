"""Where a hub is, what may be sent to it, and whom it may send us on to."""

import ipaddress
import socket
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from kargah.ground.settings import Settings

Origin = tuple[str, str, int]
"""Scheme, host (lower case) and port: what a token belongs to."""

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A hub or a mirror of one. `url` has no trailing slash and may carry a path; `token` goes to its origin alone."""

    url: str
    token: str | None = field(default=None, repr=False)

    @property
    def origin(self) -> Origin:
        return origin_of(self.url)

    @property
    def is_private(self) -> bool:
        """Whether the hub itself stands on a private or loopback address."""
        return is_private_host(self.origin[1])

    def file_url(self, kind: str, repo_id: str, commit: str, path: str) -> str:
        """The address to ask for one file of a commit; it may redirect to storage."""
        prefix = "datasets/" if kind == "dataset" else ""
        return f"{self.url}/{prefix}{repo_id}/resolve/{quote(commit, safe='')}/{quote(path)}"


def configured_endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """The endpoints of an installation in the order to try them, each with its own token."""
    return tuple(Endpoint(url, settings.token_of(url)) for url in settings.hub_endpoint)


def origin_of(url: str) -> Origin:
    """The origin of an http(s) address. Raises `ValueError` for any other."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"not an http address: {url}")
    return scheme, parts.hostname.lower(), parts.port or DEFAULT_PORTS[scheme]


def is_private_host(host: str) -> bool:
    """Whether a host name or address is, on its face, one that only this machine or network can reach."""
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    return is_private_address(host)


def is_private_address(address: str) -> bool:
    """Whether an IP address is loopback, private, link-local or otherwise not public. A host name is not."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        try:
            # The system also takes 127.1, 0x7f000001 and 2130706433 for addresses.
            parsed = ipaddress.IPv4Address(socket.inet_aton(address))
        except (OSError, UnicodeEncodeError):
            return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return not parsed.is_global
