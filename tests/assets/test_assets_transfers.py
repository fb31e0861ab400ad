"""Transfers without a network: one ending each, told to everybody, early or late; progress that only grows."""

import asyncio
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from living import BERT, Told, told
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.assets.transfers import ENDED, TRANSITIONS, Snapshot, State, Transfers
from kargah.ground.errors import InvalidState

Begin = Callable[[], Snapshot]


@pytest.fixture
def begin(platform: Platform) -> Begin:
    """Opens a transfer of a model."""

    def open_transfer() -> Snapshot:
        with platform.database.write() as session:
            return platform.transfers.begin(session, "model", BERT, "test", {"name": "n", "source": "HuggingFace"})

    return open_transfer


def _events(api: TestClient, last: str | None = None, language: str = "en") -> list[Told]:
    headers = {"Accept-Language": language} | ({"Last-Event-ID": last} if last else {})
    answer = api.get("/api/models/download/progress", params={"modelId": BERT}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return list(told(iter(answer.text.split("\n"))))


def test_what_was_never_asked_for_and_what_is_no_id(api: TestClient) -> None:
    def refusal(**params: str) -> tuple[int, str]:
        answer = api.get("/api/models/download/progress", params=params)
        assert answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json()["error"]

    assert refusal(modelId=BERT) == (404, "DOWNLOAD_NOT_FOUND")
    assert refusal(modelId="evil/model") == (400, "MODEL_NOT_ALLOWED")
    assert refusal(modelId="../x") == (400, "VALIDATION_FAILED")
    assert refusal() == (400, "VALIDATION_FAILED")


@pytest.mark.parametrize(
    ("end", "status", "progress"),
    [
        (lambda transfers, id: transfers.finish(id, size_bytes=7), "done", 100),
        (lambda transfers, id: transfers.fail(id, "HUB_UNREACHABLE"), "error", 0),
        (lambda transfers, id: transfers.fail(id, "CANCELLED"), "error", 0),
        (lambda transfers, id: transfers.fail(id, "DISK_FULL", {}, {"neededBytes": 5, "freeBytes": 1}), "error", 0),
    ],
)
def test_a_late_client_gets_the_ending_and_a_returning_one_204(
    api: TestClient,
    platform: Platform,
    begin: Begin,
    end: Callable[[Transfers, str], None],
    status: str,
    progress: int,
) -> None:
    transfer = begin()
    end(platform.transfers, transfer.transfer_id)
    (event,) = _events(api)
    assert (event.data["status"], event.data["progress"]) == (status, progress)
    assert event.data["downloadId"] == transfer.transfer_id
    if status == "error":
        assert event.data["message"]
        assert event.data["message"] != _events(api, language="fa")[0].data["message"]
        assert event.data["phase"] == "error"
    if event.data.get("error") == "DISK_FULL":
        assert event.data["details"] == {"neededBytes": 5, "freeBytes": 1}
    assert event.id is not None
    headers = {"Last-Event-ID": event.id}
    answer = api.get("/api/models/download/progress", params={"modelId": BERT}, headers=headers)
    assert answer.status_code == 204
    assert _events(api, str(int(event.id) - 1)) == [event]


@pytest.mark.parametrize("named", ["²", "9" * 40, "-1", "x", "1.5", "0x10"])
def test_an_id_that_is_none_of_ours_is_as_none(api: TestClient, platform: Platform, begin: Begin, named: str) -> None:
    platform.transfers.finish(begin().transfer_id)
    answer = api.get(
        "/api/models/download/progress",
        params={"modelId": BERT},
        headers={"Last-Event-ID": named.encode("latin-1")},
    )
    assert answer.status_code == 200
    assert '"status":"done"' in answer.text


def test_every_event_has_the_keys_of_the_contract(api: TestClient, platform: Platform, begin: Begin) -> None:
    keys = {"modelId", "status", "phase", "progress", "bytesDownloaded", "totalBytes", "speed", "etaSeconds", "file"}
    transfer = begin()
    assert set(transfer.wire("fa")) >= keys
    for state in State:
        if state not in ENDED:
            snapshot = Snapshot("t", "model", BERT, state, state.value)
            assert snapshot.wire("en")["status"] == "downloading"
            assert snapshot.wire("en")["phase"] == state.value
    platform.transfers.finish(transfer.transfer_id)
    assert set(_events(api)[0].data) >= keys


def test_it_ends_once(api: TestClient, platform: Platform, begin: Begin) -> None:
    transfer = begin()
    start = threading.Barrier(8)

    def end(number: int) -> None:
        start.wait()
        if number % 2:
            platform.transfers.finish(transfer.transfer_id)
        else:
            platform.transfers.fail(transfer.transfer_id, "CANCELLED")
        platform.transfers.progress(transfer.transfer_id, bytes_downloaded=1, state=State.DOWNLOADING)

    threads = [threading.Thread(target=end, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = _events(api), _events(api)
    assert first == second
    assert platform.transfers.get(transfer.transfer_id).ended
    assert len([event for event in platform.events.after(["downloads"], 0) if event.type == "ended"]) == 1
    with pytest.raises(InvalidState):
        platform.transfers.enter(transfer.transfer_id, State.DOWNLOADING)


def test_states_follow_the_table_pair_by_pair(platform: Platform, begin: Begin) -> None:
    living = [state for state in State if state not in ENDED]
    for before, after in product(living, living):
        transfer = begin()
        platform.transfers.progress(transfer.transfer_id, state=before, phase=before.value)
        if after in TRANSITIONS[before]:
            platform.transfers.enter(transfer.transfer_id, after)
            assert platform.transfers.get(transfer.transfer_id).state is after, (before, after)
        else:
            with pytest.raises(InvalidState):
                platform.transfers.enter(transfer.transfer_id, after)


def test_the_table_says_what_the_docstring_says() -> None:
    assert TRANSITIONS[State.PAUSED] == {State.QUEUED, State.ERROR}
    assert all(State.PAUSED in TRANSITIONS[state] for state in TRANSITIONS if state not in (*ENDED, State.PAUSED))
    assert all(not TRANSITIONS[state] for state in ENDED)


def _listen(platform: Platform, snapshot: Snapshot, last: int | None, work: Callable[[], None]) -> list[Told]:
    """Events of a stream that was opened before `work` was done in another thread."""

    async def listen() -> list[Told]:
        seen = []
        working = asyncio.get_running_loop().run_in_executor(None, work)
        async for event in platform.transfers.events(snapshot, last, "en"):
            seen.append(Told(event.id, event.data))
        await working
        return seen

    return asyncio.run(asyncio.wait_for(listen(), 30))


def test_two_clients_see_the_same_ending(platform: Platform, begin: Begin) -> None:
    transfer = begin()

    async def both() -> list[list[Told]]:
        async def one() -> list[Told]:
            return [Told(e.id, e.data) async for e in platform.transfers.events(transfer, None, "en")]

        first = asyncio.ensure_future(one())
        second = asyncio.ensure_future(one())
        await asyncio.sleep(0)

        def work() -> None:
            for number in range(1, 50):
                platform.transfers.progress(transfer.transfer_id, total_bytes=50, bytes_downloaded=number)
            platform.transfers.fail(transfer.transfer_id, "CHECKSUM_MISMATCH")

        await asyncio.get_running_loop().run_in_executor(None, work)
        return list(await asyncio.wait_for(asyncio.gather(first, second), 30))

    first, second = asyncio.run(both())
    assert first[-1] == second[-1]
    assert (first[-1].data["status"], first[-1].data["error"]) == ("error", "CHECKSUM_MISMATCH")
    for seen in (first, second):
        assert [int(event.id or 0) for event in seen] == sorted({int(event.id or 0) for event in seen})


def test_a_client_with_an_id_of_the_future_still_gets_the_ending(platform: Platform, begin: Begin) -> None:
    """A clock that was put back, or another server's id, must not silence a stream."""
    transfer = begin()
    seen = _listen(platform, transfer, transfer.seq + 10**9, lambda: platform.transfers.finish(transfer.transfer_id))
    assert seen[-1].data["status"] == "done"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    figures=st.lists(
        st.one_of(
            st.builds(dict, bytes_downloaded=st.integers(0, 1200)),
            st.builds(dict, total_bytes=st.integers(1, 1000)),
            st.builds(dict, state=st.sampled_from([State.DOWNLOADING, State.VERIFYING])),
        ),
        max_size=20,
    ),
    good=st.booleans(),
)
def test_progress_never_falls_and_is_100_only_with_done(
    platform: Platform, begin: Begin, figures: list[dict[str, Any]], good: bool
) -> None:
    transfer = begin()

    def work() -> None:
        for figure in figures:
            platform.transfers.progress(transfer.transfer_id, **figure)
        if good:
            platform.transfers.finish(transfer.transfer_id)
        else:
            platform.transfers.fail(transfer.transfer_id, "CANCELLED")

    seen = [event.data for event in _listen(platform, transfer, None, work)]
    shown = [data["progress"] for data in seen]
    assert shown == sorted(shown)
    assert [data["status"] for data in seen[:-1]] == ["downloading"] * (len(seen) - 1)
    assert seen[-1]["status"] == ("done" if good else "error")
    assert all((data["progress"] == 100) == (data["status"] == "done") for data in seen)
    totals = [data["totalBytes"] for data in seen if data["totalBytes"] is not None]
    assert len(set(totals)) <= 1


def test_the_progress_that_was_shown_survives_the_server(platform: Platform, begin: Begin) -> None:
    """Another server that takes the transfer up must not show less."""
    transfer = begin()
    shown = []
    for number in range(0, 90, 7):
        platform.transfers.progress(transfer.transfer_id, total_bytes=100, bytes_downloaded=number)
        shown.append(platform.transfers.get(transfer.transfer_id))
    successor = Transfers(platform.database, platform.events, platform.registry)
    adopted = successor.adopt(transfer.transfer_id)
    assert adopted.progress == shown[-1].progress
    assert successor.get(transfer.transfer_id).seq > shown[-1].seq
    assert [snapshot.transfer_id for snapshot in successor.unfinished("test")] == [transfer.transfer_id]
    successor.fail(transfer.transfer_id, "CANCELLED")
    assert successor.unfinished("test") == []
