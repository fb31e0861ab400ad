"""The ways to the bytes: redirects, proxies, TLS, and what the token and private addresses have to do with them."""

import hashlib
import ssl

import pytest
from download import FILE, WEIGHTS, Download, failure_of
from faults import Fault, FaultProxy
from workshop import SMALL, RunningHub, Workshop

from kargah.hub.connection import Connections
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import EndpointFailed


def test_a_redirect_to_storage_is_followed_without_the_token(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop
) -> None:
    with FaultProxy(hub.url) as storage:
        place = f"{storage.url}/org/tiny/resolve/main/{FILE}?signed=%2B"
        proxy.faults += [
            Fault(on=FILE, status=302, headers={"Location": place, "X-Repo-Commit": "0" * 40}),
            Fault(on="/config.json", status=307, headers={"Location": "relative/../config.json"}, times=1),
        ]
        storage.faults.append(Fault(on=FILE, cut_every=300_000, times=1))
        download = Download(workshop.job("org/tiny", Endpoint(proxy.url, token="secret")))
        download.run()
        assert download.content() == WEIGHTS
        assert all(seen.headers["authorization"] == "Bearer secret" for seen in proxy.requests)
        assert len(storage.requests) == 2
        # Signed addresses expire: each attempt begins at the hub.
        assert len(proxy.file_requests(FILE)) == 2
        assert all("authorization" not in seen.headers for seen in storage.requests)
        assert all(seen.headers["accept-encoding"] == "identity" for seen in storage.requests)


def test_a_redirect_of_metadata_loses_the_token(proxy: FaultProxy, hub: RunningHub, workshop: Workshop) -> None:
    with FaultProxy(hub.url) as elsewhere:
        place = f"{elsewhere.url}/api/models/org/tiny"
        proxy.faults.append(Fault(on="/api/models/org/tiny", status=301, headers={"Location": place}, times=1))
        Download(workshop.job("org/tiny", Endpoint(proxy.url, token="secret"))).plan()
        assert [seen.headers.get("authorization") for seen in elsewhere.requests] == [None]
        assert all(seen.headers["authorization"] == "Bearer secret" for seen in proxy.requests)


def test_endless_redirects_end(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, status=302, headers={"Location": f"/x/resolve/main/{FILE}"}))
    assert failure_of(download).code == "HUB_UNREACHABLE"
    assert len(proxy.file_requests(FILE)) == SMALL.max_redirects + 1


def test_expired_storage_is_asked_for_again(proxy: FaultProxy, hub: RunningHub, download: Download) -> None:
    with FaultProxy(hub.url, Fault(status=403, times=2)) as storage:
        place = f"{storage.url}/org/tiny/resolve/main/{FILE}"
        proxy.faults.append(Fault(on=FILE, status=302, headers={"Location": place}))
        download.run()
        assert download.content() == WEIGHTS


def test_a_proxy_of_the_environment_is_used(
    proxy: FaultProxy, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url.replace("http://", "http://someone:p%40ss@"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    download = Download(workshop.job("org/tiny", "http://hub.example"))
    download.run()
    assert download.content() == WEIGHTS
    assert {seen.target.split("/")[2] for seen in proxy.requests} == {"hub.example"}
    assert all(seen.headers["proxy-authorization"] == "Basic c29tZW9uZTpwQHNz" for seen in proxy.requests)


def test_a_hub_behind_tls_with_and_without_a_proxy(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(hub.url, Fault(on=FILE, cut_every=300_000), tls=tls) as secure, FaultProxy(secure.url) as tunnel:
        direct = Download(workshop.job("org/tiny", secure.url))
        direct.run()
        assert direct.content() == WEIGHTS
        direct.store.blob("sha256:" + hashlib.sha256(WEIGHTS).hexdigest()).unlink()
        monkeypatch.setenv("https_proxy", tunnel.url.replace("http://", "http://someone:secret@"))
        download = Download(workshop.job("org/tiny", Endpoint("https://hub.example", token="token")))
        download.run()
        assert download.content() == WEIGHTS
        assert {(seen.method, seen.target) for seen in tunnel.requests} == {("CONNECT", "hub.example:443")}
        assert all(seen.headers["proxy-authorization"].startswith("Basic ") for seen in tunnel.requests)
        assert all("authorization" not in seen.headers for seen in tunnel.requests)


def test_an_unknown_certificate_is_no_connection(
    hub: RunningHub, workshop: Workshop, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with FaultProxy(hub.url, tls=tls) as secure:
        failure = failure_of(Download(workshop.job("org/tiny", secure.url)))
    assert failure.code == "HUB_UNREACHABLE"
    assert "certificate" in failure.detail.lower()


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:1/x", "http://localhost/x", "http://[::1]/x", "http://10.0.0.1/", "http://127.1/"]
)
@pytest.mark.parametrize("on", ["/api/", FILE])
def test_a_public_hub_may_not_send_us_to_a_private_address(
    proxy: FaultProxy, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, place: str, on: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    proxy.faults.append(Fault(on=on, status=302, headers={"Location": place}))
    failure = failure_of(Download(workshop.job("org/tiny", "http://hub.example")))
    assert failure.code == "HUB_UNREACHABLE"
    assert "private address" in failure.detail


def test_a_public_name_with_a_private_address_is_refused_too(hub: RunningHub) -> None:
    # Nothing looked at this name before it was resolved.
    connections = Connections(SMALL)
    port = hub.url.rpartition(":")[2]
    with pytest.raises(EndpointFailed, match="private address"):
        connections.get(Endpoint("http://hub.example"), f"http://127.1:{port}/", {})
