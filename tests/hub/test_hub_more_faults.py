"""Faults that come in pairs, mirrors and moves seen through the server, many files, and who listens to the stream."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from download import FILE, WEIGHTS, Download, failure_of
from event_source import EventSource
from faults import Fault, FaultProxy
from living import BERT, NOBODY, MakeLiving, Told, told
from starlette.testclient import TestClient
from workshop import SMALL, RunningHub, Workshop

from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.assets.transfers import Snapshot, State
from kargah.ground.home import folder_name
from kargah.ground.settings import Settings
from kargah.spec.manifest import verify_folder

PROGRESS = "/api/models/download/progress"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

Opened = Callable[..., Any]


# Two faults at once.


@pytest.mark.parametrize(
    "faults",
    [
        [
            Fault(on=FILE, cut_every=100_000, reset=True, times=2),
            Fault(on=FILE, status=429, headers={"Retry-After": "0"}, times=2),
            Fault(on=FILE, cut_every=70_000, times=2),
            Fault(on=FILE, status=503, headers={"Retry-After": "0"}, times=1),
        ],
        [Fault(on=FILE, cut_every=250_000, times=1), Fault(on=FILE, ignore_range=True, cut_every=400_000, times=1)],
        [Fault(on=FILE, stall_after=100_000, stall_seconds=5, times=1), Fault(on=FILE, ignore_range=True, times=1)],
        [Fault(on=FILE, refuse=True, times=2), Fault(on=FILE, stall_after=0, stall_seconds=5, times=1)],
    ],
    ids=["drop, 429 and 503", "drop and ignored range", "stall and ignored range", "refusal and silence"],
)
def test_two_faults_at_once(proxy: FaultProxy, download: Download, faults: list[Fault]) -> None:
    proxy.faults += faults
    download.run()
    assert download.content() == WEIGHTS
    assert download.meter.bytes_downloaded == len(WEIGHTS) + 22
    assert not download.part.exists()


def test_a_flipped_byte_behind_an_ignored_range_is_mended_by_a_fresh_start(
    proxy: FaultProxy, download: Download
) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    proxy.faults.append(Fault(on=FILE, ignore_range=True, flip_at=5, times=1))
    download.run()
    assert download.content() == WEIGHTS
    assert len(proxy.file_requests(FILE)) == 2


def test_a_flipped_byte_in_every_answer_and_a_range_that_is_ignored(proxy: FaultProxy, download: Download) -> None:
    proxy.faults += [Fault(on=FILE, cut_every=300_000, times=1), Fault(on=FILE, ignore_range=True, flip_at=5)]
    assert failure_of(download).code == "CHECKSUM_MISMATCH"
    assert not download.part.exists()
    assert not download.store.blob("sha256:" + hashlib.sha256(WEIGHTS).hexdigest()).exists()


def test_a_storage_behind_a_redirect_that_falls_silent_is_asked_for_again_at_the_hub(
    proxy: FaultProxy, hub: RunningHub, download: Download
) -> None:
    with FaultProxy(hub.url, Fault(on=FILE, stall_after=200_000, stall_seconds=5, times=2)) as storage:
        place = f"{storage.url}/org/tiny/resolve/main/{FILE}?signed=1"
        proxy.faults.append(Fault(on=FILE, status=302, headers={"Location": place}))
        download.run()
        assert download.content() == WEIGHTS
        assert storage.file_bytes(FILE) == len(WEIGHTS)
        assert len(proxy.file_requests(FILE)) == 3
        assert "stalled" in download.phases


# Through the server.


@pytest.fixture
def opened(tmp_path: Path, site_catalog: Path) -> Opened:
    """A server in this process whose workers lose patience soon; gives a client of it, whose `platform` it is."""

    @contextmanager
    def make(*endpoints: str) -> Iterator[_Api]:
        platform = Platform(Settings(home=tmp_path / "home", catalog=site_catalog, hub_endpoint=endpoints), SMALL)
        application = Application(platform)
        with _Api(application.asgi, base_url="http://127.0.0.1", headers={"Accept-Language": "en"}) as api:
            api.platform = platform
            yield api

    return make


class _Api(TestClient):
    platform: Platform

    def present(self) -> Snapshot:
        """The download as it is now."""
        snapshot = self.platform.transfers.latest("model", BERT)
        assert snapshot is not None
        return snapshot


def _start(api: _Api) -> None:
    assert api.post("/api/models/download/start", json={"modelId": BERT}).status_code == 200


def _events(api: _Api) -> list[Told]:
    return list(told(iter(api.get(PROGRESS, params={"modelId": BERT}).text.split("\n"))))


def _done(events: list[Told], total: int) -> None:
    shown = [event.data["progress"] for event in events]
    assert shown == sorted(shown)
    last = events[-1].data
    assert (last["status"], last["progress"], last["bytesDownloaded"], last["totalBytes"]) == (
        "done",
        100,
        total,
        total,
    )


MODEL = {"config.json": b'{"model_type": "bert"}', FILE: WEIGHTS, "واژه‌نامه/خالی ي.txt": b""}
TOTAL = sum(map(len, MODEL.values()))


def _folder(home: Path) -> Path:
    (folder,) = (home / "models" / folder_name(BERT)).iterdir()
    verify_folder(folder)
    return folder


def test_a_mirror_dies_half_way_and_the_next_goes_on_from_the_same_byte(
    hub: RunningHub, opened: Opened, tmp_path: Path
) -> None:
    hub.add(BERT, MODEL)
    dying = [Fault(on=FILE, cut_every=250_000, times=1), Fault(on=FILE, refuse=True)]
    with FaultProxy(hub.url, *dying) as first, FaultProxy(hub.url) as second, opened(first.url, second.url) as api:
        _start(api)
        _done(_events(api), TOTAL)
        assert (first.file_bytes(FILE), second.file_bytes(FILE)) == (250_000, len(WEIGHTS) - 250_000)
        assert second.file_requests(FILE)[0].headers["range"] == "bytes=250000-"
    folder = _folder(tmp_path / "home")
    assert {path: (folder / path).read_bytes() for path in MODEL} == MODEL


def test_a_repository_that_moves_meanwhile_is_fetched_as_it_was(
    hub: RunningHub, opened: Opened, tmp_path: Path
) -> None:
    hub.add(BERT, MODEL)
    with FaultProxy(hub.url, Fault(on=FILE, slow_bytes_per_second=200_000)) as proxy, opened(proxy.url) as api:
        _start(api)
        with FaultProxy(hub.url) as other:
            commit = httpx.get(f"{other.url}/api/models/{BERT}", trust_env=False).json()["sha"]
        body = {"modelId": BERT}
        _until(lambda: api.present().bytes_downloaded > 50_000)
        assert api.post("/api/models/download/pause", json=body).status_code == 202
        _until(lambda: api.present().state is State.PAUSED)
        hub.add(BERT, {"new.json": b"{}"})
        proxy.faults.clear()
        assert api.post("/api/models/download/resume", json=body).status_code == 202
        _done(_events(api), TOTAL)
    folder = _folder(tmp_path / "home")
    assert folder.name == commit
    assert not (folder / "new.json").exists()


def test_two_thousand_small_files(hub: RunningHub, make_living: MakeLiving) -> None:
    small = {f"part-{number % 7}/{number}.json": b'{"n": %d}' % number for number in range(2_000)}
    files = {**MODEL, **small}
    hub.add(BERT, files)
    living = make_living(hub_endpoint=hub.url)
    living.client.get("/api/assets")
    assert living.process is not None
    process = psutil.Process(living.process.pid)
    before = (process.num_fds(), process.num_threads())
    events = living.fetch(BERT)
    _done(events, sum(len(content) for content in {*files.values()}))
    folder = _folder(living.home)
    assert all((folder / path).read_bytes() == content for path, content in files.items())
    living.client.get("/api/assets")
    _until(lambda: process.num_fds() <= before[0] + 4)
    assert process.num_threads() <= before[1] + 4
    assert not process.children(recursive=True)


@pytest.mark.parametrize(
    ("model_id", "status", "code"),
    [
        (BERT, 404, "DOWNLOAD_NOT_FOUND"),
        ("nobody/nothing", 400, "MODEL_NOT_ALLOWED"),
        ("../../etc", 400, "VALIDATION_FAILED"),
        ("", 400, "VALIDATION_FAILED"),
    ],
)
def test_an_id_that_has_no_stream_is_answered_as_json(opened: Opened, model_id: str, status: int, code: str) -> None:
    with opened(NOBODY) as api:
        for headers in ({}, {"Last-Event-ID": "17"}, {"Accept": "text/event-stream"}):
            answer = api.get(PROGRESS, params={"modelId": model_id}, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (status, code)
            assert answer.headers["content-type"].startswith("application/json")


def test_metadata_of_a_dead_mirror_costs_few_attempts_while_another_lives(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop
) -> None:
    proxy.faults.append(Fault(on="/api/", status=503))
    patient = replace(SMALL, idle_retries=50)
    download = Download(workshop.job("org/tiny", proxy.url, hub.url, settings=patient))
    assert download.plan().endpoint == hub.url
    assert len(proxy.requests) == 3
    # When nobody answers, the first is asked again with all its patience.
    proxy.faults[0].times = 9
    download = Download(workshop.job("org/tiny", proxy.url, NOBODY, settings=patient))
    assert download.plan().endpoint == proxy.url


def test_listeners_early_and_late_hear_one_ending_that_outlives_the_server(
    hub: RunningHub, make_living: MakeLiving
) -> None:
    """The server is killed the moment somebody hears the ending: whoever heard it, it is in the database."""
    hub.add(BERT, MODEL)
    with FaultProxy(hub.url, Fault(on=FILE, slow_bytes_per_second=250_000)) as proxy:
        living = make_living(hub_endpoint=proxy.url)
        url = f"{living.url}{PROGRESS}?modelId={BERT}"
        living.client.post("/api/models/download/start", {"modelId": BERT})
        early = [EventSource(url) for _ in range(2)]
        early[0].wait_for(lambda data: data["bytesDownloaded"] > 100_000)
        late = EventSource(url)
        living.kill()
        living.start()
        ending = early[0].wait_for(lambda data: data["status"] != "downloading")
        living.kill()
        living.start()
        for source in (*early, late):
            events = source.wait_for_end()
            shown = [event.data["progress"] for event in events]
            assert shown == sorted(shown)
            assert [event for event in events if event.data["status"] == "done"] == [ending]
            assert (events[-1], source.statuses[-1], source.named[-1]) == (ending, 204, ending.id)
        after = EventSource(url).wait_for_end()
        assert after == [ending]
        # Nothing begins again by itself.
        requests = len(proxy.requests)
        assert living.client.post("/api/models/download/start", {"modelId": BERT})["started"] is False
        assert len(proxy.requests) == requests


def test_a_failure_is_a_last_event_too_and_a_new_try_has_a_stream_of_its_own(hub: RunningHub, opened: Opened) -> None:
    hub.add(BERT, MODEL)
    with FaultProxy(hub.url, Fault(on=FILE, flip_at=9)) as proxy, opened(proxy.url) as api:
        _start(api)
        first = _events(api)[-1]
        assert (first.data["status"], first.data["error"]) == ("error", "CHECKSUM_MISMATCH")
        assert api.get(PROGRESS, params={"modelId": BERT}, headers={"Last-Event-ID": str(first.id)}).status_code == 204
        proxy.faults.clear()
        _start(api)
        # Who still names the old ending is told of the new transfer.
        answer = api.get(PROGRESS, params={"modelId": BERT}, headers={"Last-Event-ID": str(first.id)})
        _done(list(told(iter(answer.text.split("\n")))), TOTAL)


PAGE = """<!doctype html><meta charset="utf-8"><script>
const source = new EventSource("{url}");
source.onmessage = event => {{ tell("/heard", [event.lastEventId, JSON.parse(event.data)]); }};
source.onerror = () => {{ tell("/state", source.readyState); }};
function tell(path, value) {{ fetch(path, {{method: "POST", body: JSON.stringify(value)}}); }}
</script>"""


class _Site(ThreadingHTTPServer):
    """A page that listens with the browser's own EventSource and tells what it heard."""

    daemon_threads = True
    page = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SiteHandler)
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.states: list[int] = []
        self.changed = threading.Condition()
        self.origin = f"http://127.0.0.1:{self.server_port}"

    def wait_for(self, wanted: Callable[[], object], timeout_seconds: float = 60.0) -> None:
        with self.changed:
            assert self.changed.wait_for(wanted, timeout_seconds), (self.heard[-1:], self.states)


class _SiteHandler(BaseHTTPRequestHandler):
    server: _Site

    def do_GET(self) -> None:
        body = self.server.page.encode() if self.path == "/" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.changed:
            if self.path == "/heard":
                self.server.heard.append((value[0], value[1]))
            else:
                self.server.states.append(value)
            self.server.changed.notify_all()
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def site() -> Iterator[_Site]:
    running = _Site()
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_real_browser_reconnects_through_a_crash_and_stops_at_the_end(
    hub: RunningHub, make_living: MakeLiving, site: _Site, tmp_path: Path
) -> None:
    hub.add(BERT, MODEL)
    with FaultProxy(hub.url, Fault(on=FILE, slow_bytes_per_second=120_000)) as proxy:
        living = make_living(hub_endpoint=proxy.url, cors_origins=site.origin)
        site.page = PAGE.format(url=f"{living.url}{PROGRESS}?modelId={BERT}")
        living.client.post("/api/models/download/start", {"modelId": BERT})
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--no-first-run")
        browser = subprocess.Popen(
            [
                str(CHROMIUM),
                *flags,
                "--remote-debugging-port=0",
                f"--user-data-dir={tmp_path / 'profile'}",
                site.origin,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            site.wait_for(lambda: any(data["bytesDownloaded"] > 0 for _, data in site.heard))
            living.kill()
            site.wait_for(lambda: site.states)
            proxy.faults.clear()
            living.start()
            # 2 is CLOSED: the answer 204 has told it not to come back.
            site.wait_for(lambda: site.states[-1:] == [2])
        finally:
            os.killpg(browser.pid, 9)
            browser.wait()
    told_of = sorted(site.heard, key=lambda event: int(event[0]))
    assert len({event_id for event_id, _ in told_of}) == len(told_of)
    shown = [data["progress"] for _, data in told_of]
    assert shown == sorted(shown)
    assert [data["status"] for _, data in told_of].count("done") == 1
    assert told_of[-1][1]["status"] == "done"


def test_nobody_answers_and_the_stream_still_ends(opened: Opened) -> None:
    with opened(NOBODY, "http://[::1]:9", "http://127.0.0.1:9/prefix") as api:
        _start(api)
        last = _events(api)[-1].data
    assert (last["status"], last["error"]) == ("error", "HUB_UNREACHABLE")


def _until(condition: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
    waiting = threading.Event()
    for _ in range(int(timeout_seconds / 0.02)):
        if condition():
            return
        waiting.wait(0.02)
    raise AssertionError("it did not come to be")
