"""Proxies by SOCKS, over real sockets: metadata and bytes go through, names are resolved where they should be."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from download import FILE, WEIGHTS, Download, failure_of
from faults import Fault, FaultProxy
from living import free_port
from socks import SocksServer
from workshop import RunningHub, Workshop

from kargah.hub.endpoint import Endpoint
from kargah.hub.proxies import proxies_in_use
from kargah.hub.reachability import try_endpoint

PASSWORD = "p@ss:w/ord"
QUOTED = "p%40ss%3Aw%2Ford"


def _port(url: str) -> int:
    return int(urlsplit(url).port or 0)


@pytest.mark.parametrize("credentials", [None, ("someone", PASSWORD)])
@pytest.mark.parametrize("scheme", ["socks5h", "socks"])
def test_names_are_resolved_at_the_proxy(
    proxy: FaultProxy,
    workshop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    credentials: tuple[str, str] | None,
) -> None:
    with SocksServer({"hub.example": _port(proxy.url)}, credentials) as socks:
        shown = f"someone:{QUOTED}@" if credentials else ""
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{shown}{socks.address}")
        download = Download(workshop.job("org/tiny", Endpoint("http://hub.example", token="secret")))
        download.run()
        assert download.content() == WEIGHTS
        assert {(one.kind, one.host, one.port) for one in socks.passages} == {("socks5h", "hub.example", 80)}
        assert {one.credentials for one in socks.passages} == {credentials}
        # The description and every fetching thread have connections of their own, and keep them.
        assert 2 <= len(socks.passages) <= 1 + download.job.settings.connections * 2
        assert all(seen.headers["host"] == "hub.example" for seen in proxy.requests)
        assert all(seen.headers["authorization"] == "Bearer secret" for seen in proxy.requests)
        assert all("proxy-authorization" not in seen.headers for seen in proxy.requests)


@pytest.mark.parametrize(("scheme", "kind"), [("socks5", "socks5"), ("socks4", "socks4"), ("socks4a", "socks4h")])
def test_the_other_versions(
    proxy: FaultProxy, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, scheme: str, kind: str
) -> None:
    with SocksServer() as socks:
        monkeypatch.setenv("http_proxy", f"{scheme}://{socks.address}")
        download = Download(workshop.job("org/tiny", proxy.url.replace("127.0.0.1", "localhost")))
        download.run()
        assert download.content() == WEIGHTS
        expected = "localhost" if kind.endswith("h") else "127.0.0.1"
        assert {(one.kind, one.host) for one in socks.passages} == {(kind, expected)}


def test_tls_goes_through_socks(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(hub.url, Fault(on=FILE, cut_every=300_000), tls=tls) as secure:
        with SocksServer({"hub.example": _port(secure.url)}) as socks:
            monkeypatch.setenv("HTTPS_PROXY", f"socks5h://{socks.address}")
            download = Download(workshop.job("org/tiny", "https://hub.example"))
            download.run()
            assert download.content() == WEIGHTS
            assert {(one.host, one.port) for one in socks.passages} == {("hub.example", 443)}
            reached = try_endpoint(Endpoint("https://hub.example"), ["org/tiny"])
            assert (reached.failed_step, reached.facts["usesProxy"]) == (None, True)


def test_no_proxy_is_an_exception(proxy: FaultProxy, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    with SocksServer() as socks:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{socks.address}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        Download(workshop.job("org/tiny", proxy.url)).run()
        assert socks.passages == []


@pytest.mark.parametrize("wrong", ["", "someone:wrong@"])
def test_a_password_that_is_wrong_or_missing_fails_and_is_not_told(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    with SocksServer({}, ("someone", PASSWORD)) as socks:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{wrong}{socks.address}")
        failure = failure_of(Download(workshop.job("org/tiny", "http://hub.example")))
        assert failure.code == "HUB_UNREACHABLE"
        assert "SOCKS proxy" in failure.detail
        assert "wrong" not in failure.detail
        assert socks.refused > 0
        assert socks.passages == []
        reached = try_endpoint(Endpoint("http://hub.example"), [])
        assert reached.failed_step == "proxy"
        assert "wrong" not in str(reached)


def test_where_a_way_through_socks_ends_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"socks5h://127.0.0.1:{free_port()}")
    assert try_endpoint(Endpoint("http://hub.example"), []).failed_step == "proxy"
    with SocksServer({"hub.example": free_port()}) as socks:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{socks.address}")
        reached = try_endpoint(Endpoint("http://hub.example"), [])
        assert reached.failed_step == "proxy"
        assert "Host unreachable" in str(reached.reason)
        monkeypatch.setenv("ALL_PROXY", f"socks5://{socks.address}")
        assert try_endpoint(Endpoint("http://hub.invalid"), []).failed_step == "dns"


@contextmanager
def _strange(answer: bytes) -> Iterator[str]:
    """Something that listens, answers this, and hangs up."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x05\x02", b"\x05\x07", b"\x05"])
def test_what_speaks_no_socks_is_said(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    with _strange(answer) as address:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{address}")
        reached = try_endpoint(Endpoint("http://hub.example"), [])
        assert reached.failed_step == "proxy"
        assert "SOCKS proxy" in str(reached.reason)


@pytest.mark.parametrize(
    "address",
    [
        "https://someone:hidden@127.0.0.1:1",
        "ftp://someone:hidden@127.0.0.1:1",
        "http://someone:hid/den@127.0.0.1:1",
        "socks5h://someone:hidden@:1",
    ],
)
def test_a_proxy_that_is_none_is_refused_at_once(
    proxy: FaultProxy, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("http_proxy", address)
    download = Download(workshop.job("org/tiny", "http://hub.example"))
    failure = failure_of(download)
    assert failure.code == "PROXY_NOT_SUPPORTED"
    assert failure.params["variable"] == "HTTP_PROXY"
    assert failure.resumable
    assert download.waits == []
    reached = try_endpoint(Endpoint("http://hub.example"), [])
    assert reached.failed_step == "proxy"
    assert "hid" not in f"{failure} {failure.params} {reached} {proxies_in_use()}"


def test_a_public_name_behind_socks_that_is_private_here_is_refused(
    proxy: FaultProxy, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy resolves the hub's name, so only what a redirect's address shows can be looked at."""
    with SocksServer({"hub.example": _port(proxy.url)}) as socks:
        monkeypatch.setenv("http_proxy", f"socks5h://{socks.address}")
        proxy.faults.append(Fault(on=FILE, status=302, headers={"Location": "http://10.0.0.1/x"}))
        failure = failure_of(Download(workshop.job("org/tiny", "http://hub.example")))
        assert "private address" in failure.detail
        assert {one.host for one in socks.passages} == {"hub.example"}
