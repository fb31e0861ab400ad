"""The event log: replay by id, live order, and the word that a reader fell behind."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kargah.ground import events as events_module
from kargah.ground.db import Database
from kargah.ground.events import Event, EventLog, Lagged
from kargah.ground.migrate import migrate
from kargah.ground.web import sse
from kargah.ground.web.sse import Drain, ServerEvent

PATIENCE_SECONDS = 30


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    database = Database(f"sqlite:///{tmp_path / 'kargah.db'}")
    migrate(database, tmp_path / "backups")
    return EventLog(database)


def _append(log: EventLog, topic: str, type: str = "happened", **data: Any) -> int:
    with log._database.write() as session:
        return log.append(session, topic, type, data)


def test_replay_goes_on_behind_an_id(log: EventLog) -> None:
    ids = [_append(log, "runs:a" if number % 2 else "downloads", n=number, پیام="سلام") for number in range(6)]
    assert [event.data["n"] for event in log.after(["runs", "downloads"], ids[2])] == [3, 4, 5]
    assert [event.data["n"] for event in log.after(["runs"], 0)] == [1, 3, 5]
    assert [event.data["n"] for event in log.after(["runs:b"], 0)] == []
    assert [event.data["n"] for event in log.after(["runs", "downloads"], 0, limit=2)] == [0, 1]
    assert log.after(["downloads"], 0)[0].data["پیام"] == "سلام"
    assert (log.oldest_id(), log.last_id()) == (ids[0], ids[-1])


def test_a_topic_is_no_pattern(log: EventLog) -> None:
    _append(log, "runs:a")
    assert log.after(["r%"], 0) == []
    assert log.after(["run_"], 0) == []


def test_subscribers_hear_their_topics_live_and_in_order(log: EventLog) -> None:
    async def listen() -> tuple[list[int | None], list[int | None]]:
        every, one = log.subscribe(["runs", "downloads"]), log.subscribe(["runs:b"])
        writing = [
            threading.Thread(target=lambda name=name: [_append(log, f"runs:{name}") for _ in range(50)])  # type: ignore[misc]
            for name in "ab"
        ]
        for thread in writing:
            thread.start()
        heard = [await every.next(PATIENCE_SECONDS) for _ in range(100)]
        own = [await one.next(PATIENCE_SECONDS) for _ in range(50)]
        for thread in writing:
            thread.join()
        log.unsubscribe(every)
        _append(log, "runs:b")
        assert await every.next(0.01) is None
        return [event and event.id for event in heard], [event and event.topic for event in own]  # type: ignore[misc]

    ids, topics = asyncio.run(listen())
    assert ids == list(range(1, 101))
    assert set(topics) == {"runs:b"}


def test_a_reader_that_falls_behind_is_told(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "QUEUE_LIMIT", 3)

    async def listen() -> None:
        slow = log.subscribe(["t"])
        for number in range(10):
            log.publish(Event(number + 1, "t", "happened", {}))
        await asyncio.sleep(0)
        with pytest.raises(Lagged):
            await slow.next(PATIENCE_SECONDS)

    asyncio.run(listen())


def test_publishing_to_a_reader_whose_loop_has_ended_harms_nobody(log: EventLog) -> None:
    async def leave() -> None:
        log.subscribe(["t"])

    asyncio.run(leave())
    _append(log, "t")
    assert log.last_id() == 1


def test_an_event_in_wire_form() -> None:
    assert ServerEvent({"پیام": "خط\nدوم"}, "7").encode() == 'id: 7\ndata: {"پیام":"خط\\nدوم"}\n\n'.encode()
    assert ServerEvent({}).encode() == b"data: {}\n\n"


async def _collected(events: AsyncIterator[ServerEvent], drain: Drain, enough: int) -> list[bytes]:
    response = sse.stream(events, drain)
    assert response.media_type == "text/event-stream"
    assert response.headers["cache-control"] == "no-store"
    seen: list[bytes] = []
    async for part in response.body_iterator:  # type: ignore[attr-defined]
        seen.append(part)
        if len(seen) == enough:
            break
    await response.body_iterator.aclose()  # type: ignore[attr-defined]
    return seen


def test_quiet_times_are_filled_with_comments_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_EVERY_SECONDS", 0.001)
    go = asyncio.Event()

    async def quiet() -> AsyncIterator[ServerEvent]:
        await go.wait()
        yield ServerEvent({"n": 1}, "1")

    async def listen() -> list[bytes]:
        async def open_later() -> None:
            for _ in range(20):
                await asyncio.sleep(0.001)
            go.set()

        opening = asyncio.ensure_future(open_later())
        seen = await _collected(quiet(), Drain(), 10_000)
        await opening
        return seen

    seen = asyncio.run(listen())
    assert seen[0].startswith(b"retry: ")
    assert seen[1].startswith(b": ")
    assert seen[-1] == b'id: 1\ndata: {"n":1}\n\n'


def test_the_quiet_time_is_within_what_the_contract_promises() -> None:
    assert 0 < sse.PING_EVERY_SECONDS <= 15


def test_a_stream_ends_with_the_server_and_its_source_is_closed() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[ServerEvent]:
        try:
            yield ServerEvent({"n": 1})
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def listen() -> list[bytes]:
        drain = Drain()
        response = sse.stream(endless(), drain)
        seen = []
        async for part in response.body_iterator:  # type: ignore[attr-defined]
            seen.append(part)
            if b"data" in part:
                drain.begin()
        return seen

    seen = asyncio.run(listen())
    assert seen[-1].startswith(b": the server is restarting")
    assert closed.is_set()


def test_a_client_that_leaves_closes_the_source() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[ServerEvent]:
        try:
            while True:
                yield ServerEvent({})
        finally:
            closed.set()

    assert len(asyncio.run(_collected(endless(), Drain(), 3))) == 3
    assert closed.is_set()
