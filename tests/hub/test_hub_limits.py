"""Limits between real workers: bytes per second, connections per host, and waits that a person cuts short."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faults import Fault, FaultProxy
from workshop import MESSAGE_TIMEOUT_SECONDS, SMALL, RunningHub, RunningWorker, Workshop

from kargah.hub.failure import Stopped
from kargah.hub.limits import Bandwidth, HostSlots, StopSignal

NUM_FILES = 6
FILES = {f"shard-{number}.safetensors": bytes([number]) * 100_000 for number in range(NUM_FILES)}
STAND = Fault(on=".safetensors", stall_after=20_000, stall_seconds=600)
PATIENT = replace(SMALL, idle_timeout_seconds=600.0, connections=3, connections_per_host=4)


@pytest.fixture
def proxy(hub: RunningHub) -> Iterator[FaultProxy]:
    for name in ("org/a", "org/b"):
        hub.add(name, {"config.json": b'{"model_type": "bert"}', **FILES})
    # Contents of their own, so that neither waits for the other's part.
    hub.add("org/b", {name: content[::-1] + b"b" for name, content in FILES.items()})
    with FaultProxy(hub.url) as running:
        yield running


def _standing(proxy: FaultProxy) -> int:
    return len(proxy.file_requests(".safetensors"))


def _until_standing(proxy: FaultProxy, wanted: int) -> None:
    until = time.monotonic() + MESSAGE_TIMEOUT_SECONDS
    while _standing(proxy) < wanted and time.monotonic() < until:
        threading.Event().wait(0.02)
    assert _standing(proxy) == wanted


def test_two_workers_keep_to_one_limit_of_connections_and_a_killed_one_gives_its_own_back(
    proxy: FaultProxy, workshop: Workshop
) -> None:
    proxy.faults.append(replace(STAND))
    first = workshop.start(workshop.job("org/a", proxy.url, settings=PATIENT))
    _until_standing(proxy, 3)
    second = workshop.start(workshop.job("org/b", proxy.url, settings=PATIENT))
    _until_standing(proxy, 4)
    # Its other threads have asked for a slot many times by now, and been refused.
    second.until(lambda message: message["type"] == "progress" and message["bytesDownloaded"] >= 20_000)
    for _ in range(20):
        second.until(lambda message: message["type"] == "progress")
    assert _standing(proxy) == 4
    first.process.kill()
    first.process.wait()
    _until_standing(proxy, 6)


def test_a_limit_of_bytes_holds_over_the_whole_transfer(proxy: FaultProxy, workshop: Workshop) -> None:
    began = time.monotonic()
    job = workshop.job("org/a", proxy.url, settings=replace(SMALL, bytes_per_second=200_000))
    worker = workshop.run(job)
    seconds = time.monotonic() - began
    assert worker.messages[-1]["type"] == "done"
    assert worker.messages[-1]["fetchedBytes"] >= NUM_FILES * 100_000
    assert seconds >= NUM_FILES * 100_000 / 200_000


def test_a_limit_that_is_told_takes_the_place_of_the_first(proxy: FaultProxy, workshop: Workshop) -> None:
    # A byte a second would take a week.
    job = workshop.job("org/a", proxy.url, settings=replace(SMALL, bytes_per_second=1))
    worker = workshop.start(job)
    worker.until(lambda message: message["type"] == "resolved")
    worker.tell("limit 0")
    assert worker.finish()["type"] == "done"


def test_a_stop_ends_a_wait_for_bytes(proxy: FaultProxy, workshop: Workshop) -> None:
    worker = workshop.start(workshop.job("org/a", proxy.url, settings=replace(SMALL, bytes_per_second=1)))
    worker.until(lambda message: message["type"] == "resolved")
    worker.tell("pause")
    assert worker.finish()["wish"] == "pause"


def _limited(worker: RunningWorker) -> None:
    assert worker.until(lambda message: message.get("phase") == "rateLimited")["until"]


def test_retry_asks_a_hub_that_made_us_wait_at_once(proxy: FaultProxy, workshop: Workshop) -> None:
    hour = {"Retry-After": "3600"}
    proxy.faults.append(Fault(on=".safetensors", status=429, headers=hour, times=1))
    settings = replace(SMALL, connections=1, max_retry_after_seconds=3600.0)
    worker = workshop.start(workshop.job("org/a", proxy.url, settings=settings))
    _limited(worker)
    worker.tell("retry")
    assert worker.finish()["type"] == "done"


def test_retry_asks_at_once_while_the_repository_is_looked_up(proxy: FaultProxy, workshop: Workshop) -> None:
    proxy.faults.append(Fault(on="/api/", status=429, headers={"Retry-After": "3600"}, times=1))
    worker = workshop.start(workshop.job("org/a", proxy.url, settings=replace(SMALL, max_retry_after_seconds=3600.0)))
    _limited(worker)
    worker.tell("retry")
    assert worker.finish()["type"] == "done"


def test_retry_gives_up_reads_that_stand_still(proxy: FaultProxy, workshop: Workshop) -> None:
    proxy.faults.append(replace(STAND, times=3))
    worker = workshop.start(workshop.job("org/a", proxy.url, settings=PATIENT))
    _until_standing(proxy, 3)
    worker.until(lambda message: message.get("phase") == "stalled")
    worker.tell("retry")
    done = worker.finish()
    assert done["type"] == "done"
    assert done["fetchedBytes"] == done["totalBytes"]


def test_a_hurry_ends_one_wait_of_each_thread() -> None:
    stop = StopSignal()
    stop.hurry()
    assert stop.wait(600) is False
    waiting = threading.Thread(target=stop.wait, args=(600,))
    waiting.start()
    while waiting.is_alive():
        stop.hurry()
        waiting.join(0.01)
    assert not stop.is_set()
    assert stop.wait(0.001) is False
    stop.set()
    assert stop.wait(600) is True


def test_the_bucket_never_gives_more_than_its_rate() -> None:
    now = [0.0]
    stop = threading.Event()
    bucket = Bandwidth(stop, lambda: now[0])
    bucket.limit(1000)
    # Time unspent is not saved up beyond an eighth of a second.
    now[0] = 100.0
    bucket.spend(125)
    spender = threading.Thread(target=bucket.spend, args=(500,))
    spender.start()
    spender.join(0.05)
    assert spender.is_alive()
    now[0] = 100.5
    spender.join(MESSAGE_TIMEOUT_SECONDS)
    assert not spender.is_alive()
    assert bucket.read_bytes(10**6) == 1024


def test_slots_of_one_process_are_counted_too(tmp_path: Path) -> None:
    stop = threading.Event()
    slots = HostSlots(tmp_path / "slots", 2, stop, waiting=stop.set)
    told: list[str] = []
    with slots.one("hub", lambda: None), slots.one("hub", lambda: None), slots.one("other", lambda: None):
        with pytest.raises(Stopped), slots.one("hub", lambda: told.append("waits")):
            raise AssertionError("a third slot")
    assert told == ["waits"]
    stop.clear()
    with slots.one("hub", lambda: told.append("waits again")):
        assert told == ["waits"]
