"""The first steps to a hub: its name, a connection, TLS; and the words for what went wrong, without any host name.

Where a proxy stands in between, they lead to the proxy.
"""

import errno
import http.client
import os
import queue
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any

import truststore

from kargah.hub.endpoint import Endpoint
from kargah.hub.proxies import ProxyFailed, ProxyNotSupported, proxy_of

STEP_SECONDS = 5.0
MAX_ADDRESSES = 4

Facts = dict[str, Any]
"""camelCase names to JSON values. None means not measured; `unmeasured` holds the reason by name."""


class StepFailed(Exception):
    """A step failed: its name, and the reason in a few words."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Hop:
    """Where the first connection goes: the hub itself, or the proxy in between."""

    host: str
    port: int
    has_tls: bool
    is_proxy: bool


def first_hop(endpoint: Endpoint) -> Hop:
    """Where a download's first connection goes. Raises `StepFailed` for a proxy that is none."""
    scheme, host, port = endpoint.origin
    try:
        proxy = proxy_of(endpoint.origin)
    except ProxyNotSupported as error:
        raise StepFailed("proxy", error.problem) from error
    if proxy is None:
        return Hop(host, port, scheme == "https", False)
    return Hop(proxy.host, proxy.port, False, True)


def reach(hop: Hop, facts: Facts) -> None:
    """Name, connection, TLS. Raises `StepFailed`."""
    addresses, facts["dnsSeconds"] = _look_up(hop)
    facts["numAddresses"] = len(addresses)
    begun = time.perf_counter()
    connected, num_failed = _connect(addresses, "proxy" if hop.is_proxy else "tcp")
    with connected:
        facts["tcpSeconds"] = time.perf_counter() - begun
        facts["numFailedAddresses"] = num_failed
        facts["family"] = "IPv6" if connected.family == socket.AF_INET6 else "IPv4"
        if not hop.has_tls:
            through = "it is made through the proxy" if hop.is_proxy and facts["scheme"] == "https" else "plain HTTP"
            unmeasured(facts, "tlsSeconds", through)
            return
        begun = time.perf_counter()
        try:
            context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            with context.wrap_socket(connected, server_hostname=hop.host) as secured:
                facts["tlsVersion"] = secured.version()
        except OSError as error:
            raise StepFailed("tls", reason_of(error)) from error
        facts["tlsSeconds"] = time.perf_counter() - begun


def reason_of(error: BaseException | None) -> str:
    """A few words without host names."""
    if isinstance(error, ProxyFailed):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        names = {getattr(socket, name): name for name in dir(socket) if name.startswith("EAI_")}
        return f"the name is not known ({names.get(error.errno, error.errno)})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted (code {error.verify_code})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or type(error).__name__})"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, http.client.RemoteDisconnected):
        return "closed without an answer"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"
    return type(error).__name__ if error is not None else "no connection"


def unmeasured(facts: Facts, name: str, reason: str) -> None:
    """Set a fact to None and keep the reason."""
    facts[name] = None
    facts.setdefault("unmeasured", {})[name] = reason


def _look_up(hop: Hop) -> tuple[list[Any], float]:
    """Addresses of a name. The system's resolver knows no time limit, so it is asked in a thread."""
    answers: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(hop.host, hop.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError("not a host name"))

    begun = time.perf_counter()
    threading.Thread(target=ask, daemon=True).start()
    step = "proxy" if hop.is_proxy else "dns"
    try:
        answer = answers.get(timeout=STEP_SECONDS)
    except queue.Empty:
        raise StepFailed(step, f"no answer within {STEP_SECONDS:.0f} s") from None
    if isinstance(answer, OSError):
        raise StepFailed(step, reason_of(answer))
    return answer, time.perf_counter() - begun


def _connect(addresses: list[Any], step: str) -> tuple[socket.socket, int]:
    """The first address that takes a connection, and how many before it did not."""
    last: OSError = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses[:MAX_ADDRESSES]):
        attempt = socket.socket(family, kind, protocol)
        attempt.settimeout(STEP_SECONDS)
        try:
            attempt.connect(address)
        except OSError as error:
            attempt.close()
            last = error
        else:
            return attempt, number
    raise StepFailed(step, reason_of(last)) from last
