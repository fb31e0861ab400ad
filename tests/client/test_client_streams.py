"""Streams over connections that break, at a real socket: each event once, in order, to the last."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from scripted import LOST, WAIT_SECONDS, Answer, MakeScripted, answer, bad, events, good

from kargah.client import (
    Client,
    NotFound,
    RunEvent,
    ServerFailed,
    ServerUnreachable,
    StreamFailed,
    TransferProgress,
    UnexpectedAnswer,
)

MakeClient = Callable[..., Client]
RUN = "a" * 32
BEGUN = {"modelId": "org/m", "started": True, "status": "downloading", "downloadId": "d"}


def transfer(status: str = "downloading", **more: Any) -> dict[str, Any]:
    return {
        "modelId": "org/m",
        "downloadId": "d",
        "status": status,
        "phase": status,
        "progress": 3,
        "bytesDownloaded": 5,
        "totalBytes": None,
        "speed": None,
        "etaSeconds": None,
        "file": None,
        "resumedBytes": 0,
        **more,
    }


def metric(step: int) -> dict[str, Any]:
    return {"type": "metric", "runId": RUN, "timestamp": "2030-01-02T03:04:05Z", "step": step, "loss": 0.5}


def final(status: str = "completed") -> dict[str, Any]:
    return {"type": "state", "runId": RUN, "status": status, "final": True, "error": None}


def event(number: int, data: dict[str, Any], end: str = "\n") -> str:
    return f"id: {number}{end}data: {json.dumps(data, ensure_ascii=False)}{end}{end}"


def last_ids(server: Any) -> list[str | None]:
    return [asked.headers.get("last-event-id") for asked in server.asked]


def test_a_stream_goes_on_behind_the_last_whole_event(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]
) -> None:
    whole = event(3, metric(3))
    server = make_scripted(
        events("retry: 1500\n\n", event(1, metric(1)), event(2, metric(2)), whole[: len(whole) // 2]),
        LOST,
        bad(503, "UNAVAILABLE", Retry_After="4"),
        events(": still here\n\n", whole, event(4, final())),
    )
    seen = list(make_client(server.url).runs.stream(RUN))
    assert [(one.event_id, one.type, one.step) for one in seen] == [
        ("1", "metric", 1),
        ("2", "metric", 2),
        ("3", "metric", 3),
        ("4", "state", None),
    ]
    assert last_ids(server) == [None, "2", "2", "2"]
    assert [waited[0], waited[1], waited[2]] == [1.5, 1.5, 4.0]


def test_a_server_that_goes_away_is_asked_again_when_it_wants_to_be(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]
) -> None:
    drained = events(event(1, metric(1)), ": the server is restarting\nretry: 2000\n\n", b"")
    server = make_scripted(drained, events(event(2, final())))
    assert [one.event_id for one in make_client(server.url).runs.stream(RUN)] == ["1", "2"]
    assert len(waited) == 1
    assert 2.0 <= waited[0] <= 2.5


def test_the_last_event_ends_it_and_closes_the_connection(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    server = make_scripted(events(event(1, final()), event(2, metric(9)), stays=True))
    assert [one.event_id for one in make_client(server.url).runs.stream(RUN)] == ["1"]
    assert server.left.wait(WAIT_SECONDS)


def test_closing_the_generator_closes_the_connection(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    server = make_scripted(events(event(1, metric(1)), stays=True), events(event(1, metric(1)), stays=True))
    client = make_client(server.url)
    stream = client.runs.stream(RUN)
    assert next(stream).step == 1
    assert not server.left.is_set()
    stream.close()
    assert server.left.wait(WAIT_SECONDS)
    server.left.clear()
    for _ in client.stream(f"/api/training/stream/{RUN}"):
        break
    assert server.left.wait(WAIT_SECONDS)


def test_nothing_more_to_tell(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    nothing = Answer((b"HTTP/1.1 204 No Content\r\n\r\n",))
    server = make_scripted(nothing, nothing)
    client = make_client(server.url)
    assert list(client.runs.stream(RUN, after="77")) == []
    assert list(client.events(after="77")) == []
    assert last_ids(server) == ["77", "77"]


def test_lines_are_those_of_the_protocol_and_not_of_unicode(
    make_scripted: MakeScripted, make_client: MakeClient
) -> None:
    """U+2028 and U+0085 end no line; a letter may arrive in two halves; lines may end as on Windows; data may have
    several lines, and a field without a space behind its colon is one."""
    text = "می‌شود\u2028خط\u0085دیگر 🌱"
    log = {"type": "log", "level": "info", "message": text}
    parts = [event(1, log).encode()[index : index + 1] for index in range(len(event(1, log).encode()))]
    two_lines = 'id:3\ndata:{"type": "state",\ndata: "status": "stopped", "final": true}\nwhatever\n\n'
    server = make_scripted(events(*parts, event(2, log, "\r\n"), two_lines))
    first, second, third = make_client(server.url).runs.stream(RUN)
    assert first.message == second.message == text
    assert (third.event_id, third.status, third.final) == ("3", "stopped", True)


def test_what_is_refused_is_an_error(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    server = make_scripted(bad(404, "RUN_NOT_FOUND"))
    with pytest.raises(NotFound):
        list(make_client(server.url).runs.stream(RUN))


@pytest.mark.parametrize(
    "odd", [answer(200, b"{}"), events("data: x\n\n"), events("data: 7\n\n"), events("data: {}\n\n")]
)
def test_what_is_no_stream_of_ours_is_an_error(
    make_scripted: MakeScripted, make_client: MakeClient, odd: Answer
) -> None:
    server = make_scripted(odd)
    with pytest.raises(UnexpectedAnswer):
        list(make_client(server.url).runs.stream(RUN))
    assert len(server.asked) == 1


def test_patience_ends_but_each_answer_renews_it(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    server = make_scripted(
        events("retry: 30\n\n", event(1, metric(1))), events(event(2, metric(2))), events(event(3, metric(3)))
    )
    stream = make_client(server.url, patience_seconds=0.3).runs.stream(RUN)
    assert [next(stream).step for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ServerUnreachable) as nobody:
        next(stream)
    assert nobody.value.url == server.url
    assert 4 < len(server.asked) < 20
    busy = make_scripted(*[bad(503, "UNAVAILABLE")] * 50)
    with pytest.raises(ServerFailed):
        list(make_client(busy.url, patience_seconds=0.2).runs.stream(RUN))


def test_a_fetch_waits_for_the_end(make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]) -> None:
    asset = {"id": "org/m", "name": "m", "kind": "model", "size": "1 B", "sizeBytes": 1, "status": "ready"}
    asset |= {"source": "HuggingFace", "downloadedAt": "2030-01-02T03:04:05Z"}
    server = make_scripted(good(BEGUN), events(event(1, transfer())), events(event(2, transfer("done"))), good([asset]))
    fetched = make_client(server.url).models.fetch("org/other-name-of-m")
    assert (fetched.id, fetched.status) == ("org/m", "ready")
    assert fetched.downloaded_at is not None
    assert fetched.downloaded_at.utcoffset() is not None
    assert "modelId=org%2Fm" in server.asked[1].path


def test_a_fetch_that_fails_says_how_the_stream_ended(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    ending = transfer("error", error="DISK_FULL", message="جا نیست", details={"neededBytes": 9})
    server = make_scripted(good(BEGUN), events(event(1, ending)))
    with pytest.raises(StreamFailed) as failed:
        make_client(server.url).models.fetch("org/m")
    assert (failed.value.code, failed.value.message, failed.value.details) == (
        "DISK_FULL",
        "جا نیست",
        {"neededBytes": 9},
    )
    assert str(failed.value) == "جا نیست [DISK_FULL]"


def test_all_events_go_on_behind_those_that_have_a_place(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]
) -> None:
    """Progress of a download is told in passing and has no place of its own; an ended download does not end it."""
    passing = {**transfer(), "topic": "downloads", "type": "progress"}
    ended = {"topic": "downloads", "type": "ended", "kind": "model", "id": "org/m", "status": "done", "error": None}
    server = make_scripted(
        events(
            event(5, {"topic": "system", "type": "hello"}),
            f"data: {json.dumps(passing)}\n\n",
            event(6, ended),
            event(7, {**metric(1), "topic": "runs"}),
        ),
        events(event(8, {**final(), "topic": "runs"}), stays=True),
    )
    stream = make_client(server.url).events(["runs", "downloads"])
    hello, progress, end, run, state = (next(stream) for _ in range(5))
    stream.close()
    assert (hello.type, hello.event_id) == ("hello", "5")
    assert isinstance(progress.transfer, TransferProgress)
    assert (progress.transfer.bytes_downloaded, progress.run) == (5, None)
    assert (end.kind, end.id, end.status, end.transfer) == ("model", "org/m", "done", None)
    assert isinstance(run.run, RunEvent)
    assert (run.run.step, run.run.loss, run.event_id) == (1, 0.5, "7")
    assert state.run is not None
    assert state.run.final
    assert last_ids(server) == [None, "7"]
    assert server.asked[0].path == "/api/events?topics=runs%2Cdownloads"
