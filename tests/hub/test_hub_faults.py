"""Everything a network does to a transfer, over real sockets, in this process and with a proxy before the hub."""

import hashlib
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from faults import Fault, FaultProxy
from workshop import SMALL, RunningHub, Workshop

from kargah.hub.blobs import BlobStore
from kargah.hub.connection import Connections
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import EndpointFailed, TransferFailed
from kargah.hub.fetching import fetch_all
from kargah.hub.job import Job
from kargah.hub.plan import Plan
from kargah.hub.progress import Meter
from kargah.hub.transfer import Endpoints, Transfer
from kargah.hub.tree import resolve

WEIGHTS = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20_000))
"""640 000 bytes without repetition, so that a byte in the wrong place is seen."""
FILE = "model.safetensors"


class Download:
    """One job, done in this process step by step."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stop = threading.Event()
        self.store = BlobStore(job.blobs)
        job.blobs.mkdir(parents=True, exist_ok=True)
        self.store.prepare()
        self.waits: list[tuple[float, bool]] = []
        self.phases: list[str] = []
        self.lengths: list[int] = []

    def plan(self) -> Plan:
        return resolve(self.job, self.stop, lambda seconds, *, rate_limited: self.waits.append((seconds, rate_limited)))

    def run(self, plan: Plan | None = None) -> None:
        plan = plan or self.plan()
        self.meter = Meter(plan, self.job.settings)
        for file in plan.contents:
            self.meter.place(file, self.store.held_bytes(file))
        endpoints = Endpoints(self.job.endpoints)
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        watch.start()
        try:
            fetch_all(
                plan.contents,
                self.job.settings.connections,
                lambda: Transfer(plan, endpoints, self.store, self.meter, self.job.settings, self.stop),
                self.stop,
            )
        finally:
            ended.set()
            watch.join()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(0.01):
            progress = self.meter.read()
            self.lengths.append(progress.bytes_downloaded)
            if self.phases[-1:] != [progress.phase]:
                self.phases.append(progress.phase)

    def content(self) -> bytes:
        """The weights as they are stored."""
        return self.store.blob("sha256:" + hashlib.sha256(WEIGHTS).hexdigest()).read_bytes()

    @property
    def part(self) -> Path:
        return self.store.part("sha256:" + hashlib.sha256(WEIGHTS).hexdigest())


@pytest.fixture
def proxy(hub: RunningHub) -> Iterator[FaultProxy]:
    hub.add("org/tiny", {"config.json": b'{"model_type": "bert"}', FILE: WEIGHTS})
    with FaultProxy(hub.url) as running:
        yield running


@pytest.fixture
def download(proxy: FaultProxy, workshop: Workshop) -> Download:
    return Download(workshop.job("org/tiny", proxy.url))


def failure_of(download: Download) -> TransferFailed:
    with pytest.raises(TransferFailed) as caught:
        download.run()
    return caught.value


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_a_link_that_drops_again_and_again_completes(proxy: FaultProxy, download: Download, reset: bool) -> None:
    proxy.faults.append(Fault(on=FILE, cut_every=50_000, reset=reset))
    download.run()
    assert download.content() == WEIGHTS
    assert len(proxy.file_requests(FILE)) >= 13
    if not reset:
        # With a reset the system may throw away bytes that were received and not read yet.
        assert proxy.file_bytes(FILE) == len(WEIGHTS)
    assert download.lengths == sorted(download.lengths)


def test_a_part_goes_on_where_it_stands(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    download.run()
    assert download.content() == WEIGHTS
    assert proxy.file_bytes(FILE) == len(WEIGHTS) - 300_000
    assert download.meter.network_bytes == len(WEIGHTS) - 300_000 + 22
    assert download.meter.bytes_downloaded == len(WEIGHTS) + 22


def test_a_flipped_byte_is_never_accepted(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, flip_at=123_456))
    failure = failure_of(download)
    assert (failure.code, failure.params["file"]) == ("CHECKSUM_MISMATCH", FILE)
    assert not download.store.blob(failure.params["expected"]).exists()
    assert not download.part.exists()


def test_a_flipped_byte_in_a_small_file_is_never_accepted(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on="config.json", flip_at=3))
    failure = failure_of(download)
    assert (failure.code, failure.params["file"]) == ("CHECKSUM_MISMATCH", "config.json")


def test_damage_in_a_resumed_part_costs_one_fresh_start(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(b"x" * 300_000)
    download.run()
    assert download.content() == WEIGHTS
    assert proxy.file_bytes(FILE) == len(WEIGHTS) - 300_000 + len(WEIGHTS)


def test_damage_after_a_resume_and_again_fails(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    proxy.faults.append(Fault(on=FILE, flip_at=400_000))
    assert failure_of(download).code == "CHECKSUM_MISMATCH"
    assert len(proxy.file_requests(FILE)) == 2


def test_damage_at_one_mirror_is_mended_by_the_other(proxy: FaultProxy, hub: RunningHub, workshop: Workshop) -> None:
    proxy.faults.append(Fault(on=FILE, flip_at=400_000))
    download = Download(workshop.job("org/tiny", proxy.url, hub.url))
    download.run()
    assert download.content() == WEIGHTS


def test_a_consistent_short_length_is_refused_at_the_headers(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, shorten=1000))
    failure = failure_of(download)
    assert failure.code == "CHECKSUM_MISMATCH"
    assert "639000 bytes instead of 640000" in failure.detail
    assert not download.part.read_bytes()


def test_a_consistent_short_range_is_refused_at_the_headers(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    proxy.faults.append(Fault(on=FILE, shorten=1000))
    assert failure_of(download).code == "CHECKSUM_MISMATCH"
    assert download.part.read_bytes() == WEIGHTS[:300_000]


def test_an_overrun_is_cut_off(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, surplus=b"more"))
    assert failure_of(download).code == "CHECKSUM_MISMATCH"


def test_a_range_that_is_ignored_starts_over_with_progress_corrected(proxy: FaultProxy, download: Download) -> None:
    proxy.faults += [Fault(on=FILE, cut_every=400_000, times=1), Fault(on=FILE, ignore_range=True)]
    download.run()
    assert download.content() == WEIGHTS
    assert proxy.file_bytes(FILE) == 400_000 + len(WEIGHTS)
    assert download.meter.bytes_downloaded == len(WEIGHTS) + 22


def test_a_server_that_ignores_ranges_and_never_gets_further_is_given_up(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, cut_every=100_000, ignore_range=True))
    assert failure_of(download).code == "HUB_UNREACHABLE"
    assert len(proxy.file_requests(FILE)) == 1 + SMALL.idle_retries + 1


def test_an_answer_from_another_byte_is_refused(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    proxy.faults.append(
        Fault(on=FILE, status=206, headers={"Content-Range": f"bytes 0-9/{len(WEIGHTS)}"}, body=WEIGHTS[:10])
    )
    assert failure_of(download).code == "NOT_A_HUB"
    assert download.part.read_bytes() == WEIGHTS[:300_000]


@pytest.mark.parametrize("retry_after", ["1", "a date"])
def test_rate_limits_are_waited_for_and_shown(proxy: FaultProxy, download: Download, retry_after: str) -> None:
    moment = formatdate(time.time() + 2, usegmt=True) if retry_after == "a date" else retry_after
    proxy.faults.append(Fault(on=FILE, status=429, headers={"Retry-After": moment}, times=1))
    download.run()
    assert download.content() == WEIGHTS
    assert "rateLimited" in download.phases
    assert download.phases[-1] != "rateLimited"


def test_a_busy_server_is_asked_again(proxy: FaultProxy, download: Download) -> None:
    proxy.faults += [
        Fault(on="/revision/", status=503, times=2),
        Fault(on="/api/models/org/tiny", status=502, times=1),
        Fault(on="/tree/", refuse=True, times=1),
        Fault(on=FILE, status=503, times=3),
        Fault(on="config.json", refuse=True, times=3),
    ]
    download.run()
    assert download.content() == WEIGHTS
    assert len(download.waits) == 2


def test_a_busy_metadata_server_is_given_up_in_the_end(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on="/api/", status=500))
    assert failure_of(download).code == "HUB_UNREACHABLE"
    assert len(download.waits) == SMALL.idle_retries


def test_rate_limited_metadata_is_shown(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on="/api/", status=429, headers={"Retry-After": "1"}, times=1))
    download.run()
    assert download.waits == [(1.0, True)]


def test_silence_is_shown_as_stalled_and_ends_in_a_new_connection(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, stall_after=200_000, stall_seconds=20, times=1))
    download.run()
    assert download.content() == WEIGHTS
    assert "stalled" in download.phases
    assert proxy.file_bytes(FILE) == len(WEIGHTS)


def test_nobody_there(workshop: Workshop) -> None:
    failure = failure_of(Download(workshop.job("org/tiny", "http://127.0.0.1:1")))
    assert (failure.code, failure.resumable) == ("HUB_UNREACHABLE", True)


PORTAL = Fault(on="/", status=200, headers={"Content-Type": "text/html"}, body=b"<html>Log in</html>")


def test_a_captive_portal_is_no_hub(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(PORTAL)
    assert failure_of(download).code == "NOT_A_HUB"


def test_a_captive_portal_in_the_middle_is_no_hub(proxy: FaultProxy, download: Download) -> None:
    plan = download.plan()
    proxy.faults.append(PORTAL)
    with pytest.raises(TransferFailed) as caught:
        download.run(plan)
    assert (caught.value.code, caught.value.resumable) == ("NOT_A_HUB", True)


def test_json_that_names_no_commit_is_no_hub(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on="/api/", status=200, body=b'{"id": "org/tiny"}'))
    assert failure_of(download).code == "NOT_A_HUB"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(on="/api/", status=404, headers={"X-Error-Code": "RepoNotFound"}), "REPO_NOT_FOUND"),
        (Fault(on="/api/", status=401, headers={"X-Error-Code": "RepoNotFound"}), "REPO_NOT_FOUND"),
        (Fault(on="/api/", status=404, headers={"X-Error-Code": "RevisionNotFound"}), "REVISION_NOT_FOUND"),
        (Fault(on="/api/", status=403, headers={"X-Error-Code": "GatedRepo"}), "HUB_UNAUTHORIZED"),
        (Fault(on="/api/", status=401), "HUB_UNAUTHORIZED"),
        (Fault(on="/api/", status=403), "HUB_UNAUTHORIZED"),
        (Fault(on=FILE, status=404, headers={"X-Error-Code": "EntryNotFound"}), "FILE_NOT_FOUND"),
        (Fault(on=FILE, status=403), "HUB_UNAUTHORIZED"),
        (Fault(on=FILE, status=511, headers={"Content-Type": "text/html"}), "NOT_A_HUB"),
    ],
)
def test_refusals_have_their_codes(proxy: FaultProxy, download: Download, fault: Fault, code: str) -> None:
    proxy.faults.append(fault)
    assert failure_of(download).code == code


def test_a_mirror_that_dies_half_way_is_followed_by_the_next(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop
) -> None:
    with FaultProxy(hub.url) as second:
        download = Download(workshop.job("org/tiny", proxy.url, second.url))
        plan = download.plan()
        proxy.faults += [Fault(on=FILE, cut_every=250_000, times=1), Fault(on="/resolve/", refuse=True)]
        download.run(plan)
        assert download.content() == WEIGHTS
        assert proxy.file_bytes(FILE) == 250_000
        assert second.file_bytes(FILE) == len(WEIGHTS) - 250_000
        assert second.file_requests(FILE)[0].headers["range"] == "bytes=250000-"


def test_metadata_comes_from_the_next_endpoint_when_the_first_is_dead(hub: RunningHub, workshop: Workshop) -> None:
    hub.add("org/tiny", {"config.json": b"{}", FILE: WEIGHTS})
    download = Download(workshop.job("org/tiny", "http://127.0.0.1:1", hub.url))
    plan = download.plan()
    assert plan.endpoint == hub.url
    download.run(plan)
    assert download.content() == WEIGHTS


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


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for `hub.example` and 127.0.0.1 that this process trusts."""
    if sys.platform == "darwin" or shutil.which("openssl") is None:
        pytest.skip("trust is given by SSL_CERT_FILE and a certificate made by openssl")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    names = "subjectAltName=DNS:hub.example,IP:127.0.0.1"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hub.example"),
            *("-addext", names, "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


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


def test_a_full_disk_is_said_with_numbers(proxy: FaultProxy, download: Download) -> None:
    download.part.symlink_to("/dev/full")
    failure = failure_of(download)
    assert (failure.code, failure.resumable) == ("DISK_FULL", True)
    assert failure.params["neededBytes"] >= len(WEIGHTS)
    assert failure.params["freeBytes"] > 0


def test_nothing_is_fetched_for_an_empty_file_or_a_known_one(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop
) -> None:
    Download(workshop.job("org/tiny", proxy.url)).run()
    hub.add(
        "other/same", {"config.json": b'{"model_type": "bert"}', "copy/model.safetensors": WEIGHTS, "empty.txt": b""}
    )
    before = proxy.file_bytes()
    download = Download(workshop.job("other/same", proxy.url))
    download.run()
    assert proxy.file_bytes() == before
    assert download.meter.bytes_downloaded == len(WEIGHTS) + 22
    assert download.store.blob("git-sha1:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391").read_bytes() == b""
