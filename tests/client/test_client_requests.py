"""What is sent, and what is sent again: counted at a real socket."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from scripted import LOST, MakeScripted, Scripted, answer, bad, good

from kargah.client import (
    AnswerLost,
    ApiError,
    Client,
    Conflict,
    KargahClientError,
    NotFound,
    NotPermitted,
    Refused,
    ServerFailed,
    ServerUnreachable,
    UnexpectedAnswer,
)

MakeClient = Callable[..., Client]
HEALTH = {
    "status": "ready",
    "version": "9",
    "database": "sqlite",
    "schemaRevision": "1",
    "offline": False,
    "computeInstalled": True,
    "moonPhase": "full",
}
BUSY = bad(503, "UNAVAILABLE", Retry_After="7")
RUN = {"runId": "a" * 32, "jobId": "b" * 32, "status": "queued"}
BEGUN = {"modelId": "org/m", "started": True, "status": "downloading", "downloadId": "d"}
STEERED = {"modelId": "org/m", "status": "downloading", "phase": "paused", "downloadId": "d"}


def test_a_get_waits_as_long_as_the_server_asks(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]
) -> None:
    server = make_scripted(BUSY, good(HEALTH))
    health = make_client(server.url).health()
    assert (health.status, health.schema_revision) == ("ready", "1")
    assert health.model_extra == {"moonPhase": "full"}
    assert len(server.asked) == 2
    assert waited == [7.0]


@pytest.mark.parametrize("failure", [LOST, bad(429, "SLOW_DOWN"), answer(502, b"<html>"), answer(504, b"")])
def test_a_get_is_asked_again(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float], failure: object
) -> None:
    server = make_scripted(failure, failure, good([]))
    assert make_client(server.url).catalog.models() == []
    assert len(server.asked) == 3
    assert all(0 < seconds <= 0.5 for seconds in waited)


def test_patience_ends(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    server = make_scripted(*[bad(503, "UNAVAILABLE", "آماده نیست")] * 50)
    with pytest.raises(ServerFailed) as failed:
        make_client(server.url, patience_seconds=0.2).health()
    assert (failed.value.status, failed.value.code, failed.value.message) == (503, "UNAVAILABLE", "آماده نیست")
    assert 1 < len(server.asked) < 10


def test_what_the_server_wants_later_than_patience_lasts_is_said_at_once(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]
) -> None:
    server = make_scripted(bad(429, "SLOW_DOWN", Retry_After="3600"), good(HEALTH))
    with pytest.raises(ApiError, match="SLOW_DOWN"):
        make_client(server.url).health()
    assert (len(server.asked), waited) == (1, [])


def test_a_post_whose_answer_was_lost_is_not_sent_again(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]
) -> None:
    calls: list[Callable[[Client], object]] = [
        lambda client: client.runs.start("org/m", ["org/d"]),
        lambda client: client.runs.stop("a" * 32),
        lambda client: client.models.resume("org/m"),
        lambda client: client.assets.delete("org/m"),
        lambda client: client.post("/api/training/start", {}),
    ]
    server = make_scripted(*[LOST] * len(calls), good(RUN))
    for call in calls:
        with pytest.raises(AnswerLost) as lost:
            call(make_client(server.url))
        assert lost.value.url == server.url
        assert server.url in str(lost.value)
    assert len(server.asked) == len(calls)
    assert waited == []


@pytest.mark.parametrize(
    ("call", "data"),
    [
        (lambda client: client.models.download("org/m").download_id, BEGUN),
        (lambda client: client.models.pause("org/m").download_id, STEERED),
        (lambda client: client.datasets.cancel("org/m").download_id, STEERED),
    ],
)
def test_what_the_server_does_once_anyway_is_sent_again(
    make_scripted: MakeScripted,
    make_client: MakeClient,
    waited: list[float],
    call: Callable[[Client], str],
    data: dict[str, object],
) -> None:
    server = make_scripted(LOST, answer(502, b""), good(data))
    assert call(make_client(server.url)) == "d"
    assert len(server.asked) == 3
    assert len({asked.body for asked in server.asked}) == 1


def test_a_post_that_the_server_took_nothing_of_is_sent_again(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]
) -> None:
    server = make_scripted(BUSY, bad(429, "SLOW_DOWN"), good(RUN))
    assert make_client(server.url).runs.start("org/m", ["org/d"], name="اجرا").run_id == "a" * 32
    bodies = [json.loads(asked.body) for asked in server.asked]
    assert bodies == [{"baseModel": "org/m", "datasets": ["org/d"], "name": "اجرا"}] * 3


def test_a_post_that_failed_elsewhere_is_not(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float]
) -> None:
    server = make_scripted(answer(502, b"<html>"), bad(500, "INTERNAL"), good(RUN))
    client = make_client(server.url)
    with pytest.raises(UnexpectedAnswer):
        client.runs.start("org/m", ["org/d"])
    with pytest.raises(ServerFailed):
        client.runs.start("org/m", ["org/d"])
    assert len(server.asked) == 2


def test_a_post_waits_for_a_server_that_is_not_there_yet(
    make_scripted: MakeScripted, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_scripted(good(RUN), listens=False)
    monkeypatch.setattr("time.sleep", lambda _seconds: server.listen())
    assert make_client(server.url).runs.start("org/m", ["org/d"]).status == "queued"
    assert len(server.asked) == 1


@pytest.mark.parametrize(("language", "word"), [("fa", "سروری"), ("en", "No server")])
def test_nobody_there(make_scripted: MakeScripted, make_client: MakeClient, language: str, word: str) -> None:
    server = make_scripted(listens=False)
    for ask in (Client.health, lambda client: client.runs.start("m", ["d"]), lambda client: list(client.events())):
        with pytest.raises(ServerUnreachable) as nobody:
            ask(make_client(server.url, language=language, patience_seconds=0.2))
        assert not isinstance(nobody.value, AnswerLost)
        assert nobody.value.url == server.url
        assert word in str(nobody.value)
        assert nobody.value.__cause__ is not None


@pytest.mark.parametrize("url", ["http://[::1", "nonsense", "ftp://127.0.0.1:1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ServerUnreachable):
        Client(url, patience_seconds=0).health()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Refused),
        (401, NotPermitted),
        (403, NotPermitted),
        (404, NotFound),
        (405, ApiError),
        (409, Conflict),
        (413, Refused),
        (500, ServerFailed),
        (507, ServerFailed),
    ],
)
def test_refusals_are_errors_with_all_that_was_said(
    make_scripted: MakeScripted, make_client: MakeClient, status: int, kind: type[ApiError]
) -> None:
    details = [{"field": "config.epochs", "problem": "باید بزرگ‌تر از ۰ باشد"}]
    server = make_scripted(bad(status, "SOME_CODE", "نمی‌شود", details))
    with pytest.raises(KargahClientError) as refused:
        make_client(server.url).datasets.get("org/d")
    error = refused.value
    assert isinstance(error, ApiError)
    assert type(error) is kind
    assert (error.status, error.code, error.message, error.details) == (status, "SOME_CODE", "نمی‌شود", details)
    assert str(error) == "نمی‌شود [SOME_CODE] (config.epochs: باید بزرگ‌تر از ۰ باشد)"


@pytest.mark.parametrize(
    "odd",
    [
        answer(200, b"<html>"),
        answer(200, [1]),
        answer(200, {"data": 1}),
        answer(200, {"ok": True}),
        answer(302, b"", Location="http://127.0.0.1:9/"),
        answer(404, {"detail": "Not Found"}),
        good({"status": "ready"}),
    ],
)
def test_what_is_no_kargah_server(make_scripted: MakeScripted, make_client: MakeClient, odd: object) -> None:
    server = make_scripted(odd)
    with pytest.raises(UnexpectedAnswer) as unexpected:
        make_client(server.url).health()
    assert server.url in unexpected.value.message
    assert len(server.asked) == 1


def test_what_every_request_says(make_scripted: MakeScripted, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_scripted(good(HEALTH), good(HEALTH))
    monkeypatch.setenv("KARGAH_URL", f"{server.url}/")
    monkeypatch.setenv("KARGAH_TOKEN", "a token of sixteen")
    monkeypatch.setenv("KARGAH_LANG", "fa")
    with Client() as client:
        client.health()
        assert repr(client) == f"Client({server.url!r})"
    with Client(token="another", language="en") as client:
        client.health()
    first, second = (asked.headers for asked in server.asked)
    assert (first["accept-language"], first["authorization"]) == ("fa", "Bearer a token of sixteen")
    assert (second["accept-language"], second["authorization"]) == ("en", "Bearer another")
    assert first["user-agent"].startswith("kargah/")


def test_a_proxy_of_the_environment_is_for_other_machines_only(
    make_scripted: MakeScripted, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = make_scripted(good(HEALTH)), make_scripted(good(HEALTH))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    make_client(server.url).health()
    assert (len(server.asked), len(proxy.asked)) == (1, 0)
    make_client("http://kargah.invalid:8765").health()
    assert proxy.asked[0].path == "http://kargah.invalid:8765/api/health"


def test_ids_stand_in_paths_whole(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    server = make_scripted(*[bad(404, "ASSET_NOT_FOUND")] * 3)
    client = make_client(server.url)
    for asset_id in ("org/name", "نام؟ x", "a/../b"):
        with pytest.raises(NotFound):
            client.datasets.get(asset_id)
    paths = [asked.path for asked in server.asked]
    assert paths[0] == "/api/datasets/org%2Fname"
    assert paths[2] == "/api/datasets/a%2F..%2Fb"
    assert "?" not in paths[1]
    for odd in ("", "..", "/", " "):
        with pytest.raises(ValueError, match="must be an id"):
            client.assets.delete(odd)


def test_a_path_keeps_its_own_query(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    server = make_scripted(good([]))
    assert make_client(server.url).get("/api/datasets?q=x", limit=None) == []
    assert server.asked[0].path == "/api/datasets?q=x"


def test_a_long_list_is_asked_for_as_it_is_read(make_scripted: MakeScripted, make_client: MakeClient) -> None:
    def row(number: int) -> dict[str, object]:
        known = {"id": f"m{number}", "name": "m", "kind": "model", "status": "ready", "source": "local"}
        return {**known, "size": None, "sizeBytes": None, "downloadedAt": None}

    server = make_scripted(
        good([row(0), row(1)], page={"next": "شناسه", "total": 3}), good([row(2)], page={"next": None, "total": 3})
    )
    assets = make_client(server.url).assets.list(kind="model", page_size=2)
    assert server.asked == []
    assert [next(assets).id, next(assets).id] == ["m0", "m1"]
    assert len(server.asked) == 1
    assert [asset.id for asset in assets] == ["m2"]
    assert server.asked[0].path == "/api/assets?kind=model&limit=2"
    assert "cursor=" in server.asked[1].path


def test_an_upload_is_sent_again_whole_when_the_server_took_nothing(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float], tmp_path: Path
) -> None:
    file = tmp_path / "نظرهای «تازه».csv"
    file.write_bytes(b"text,label\n" + b"x,y\n" * 60_000)
    started = {"datasetId": "d" * 32, "status": "downloading", "downloadId": "e"}
    server = make_scripted(BUSY, good(started), LOST, good(started))
    client = make_client(server.url)
    assert client.datasets.upload(file, columns={"text": "متن"}).dataset_id == "d" * 32
    for asked in server.asked:
        assert file.read_bytes() in asked.body
        assert 'filename="نظرهای «تازه».csv"'.encode() in asked.body
        assert '{"text": "متن"}'.encode() in asked.body
    with pytest.raises(AnswerLost):
        client.datasets.upload(file)
    assert len(server.asked) == 3
    with pytest.raises(ValueError, match="at least one file"):
        client.datasets.upload()


def test_a_body_that_cannot_be_read_twice_is_not_sent_twice(
    make_scripted: MakeScripted, make_client: MakeClient, waited: list[float], tmp_path: Path
) -> None:
    class Once:
        """A file that is only read."""

        def __init__(self, file: BinaryIO) -> None:
            self.read, self.fileno = file.read, file.fileno

    file = tmp_path / "rows.csv"
    file.write_bytes(b"a,b\n" * 9)
    server = make_scripted(BUSY, good({}))
    with open(file, "rb") as opened, pytest.raises(ServerFailed):
        make_client(server.url).answer("POST", "/api/datasets/upload", files=[("file", ("rows.csv", Once(opened)))])
    assert len(server.asked) == 1
    assert file.read_bytes() in server.asked[0].body


class TestExport:
    """A file is whole or it is not there."""

    def test_one_that_breaks_off_begins_again(
        self, make_scripted: MakeScripted, make_client: MakeClient, waited: list[float], tmp_path: Path
    ) -> None:
        half = answer(200, b"step,loss\n1,2\n", Content_Length="200")
        server = make_scripted(half, BUSY, answer(200, b"step,loss\n1,2\n2,1\n"))
        target = tmp_path / "steps.csv"
        target.write_text("old")
        assert make_client(server.url).analysis.export("a" * 32, to=target) == target
        assert target.read_text() == "step,loss\n1,2\n2,1\n"
        assert list(tmp_path.iterdir()) == [target]
        assert server.asked[-1].path == f"/api/analysis/training/export/{'a' * 32}?format=csv"

    def test_one_that_fails_leaves_what_was_there(
        self, make_scripted: MakeScripted, make_client: MakeClient, tmp_path: Path
    ) -> None:
        half = answer(200, b"step", Content_Length="200")
        server = make_scripted(*[half] * 50)
        target = tmp_path / "steps.csv"
        target.write_text("old")
        with pytest.raises(ServerUnreachable):
            make_client(server.url, patience_seconds=0.1).analysis.export("a" * 32, to=target)
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.parametrize(
        ("sent", "name"),
        [
            ("attachment; filename=\"x\"; filename*=UTF-8''%D9%86%D8%A7%D9%85.csv", "نام.csv"),
            ("attachment; filename*=UTF-8''..%2F..%2Fevil.csv", "evil.csv"),
            ("attachment; filename*=UTF-8''a%5Cb", "b"),
            ("attachment; filename*=UTF-8''..", "download"),
            ("attachment", "download"),
        ],
    )
    def test_in_a_folder_it_has_the_name_that_the_server_gives_and_no_more(
        self, make_scripted: MakeScripted, make_client: MakeClient, tmp_path: Path, sent: str, name: str
    ) -> None:
        server = make_scripted(answer(200, b"[]", Content_Disposition=sent))
        folder = tmp_path / "in"
        folder.mkdir()
        assert make_client(server.url).analysis.export("a" * 32, "json", to=folder) == folder / name
        assert [path.name for path in tmp_path.rglob("*")] == ["in", name]


def test_a_stranger_is_not_waited_for_long_but_a_known_server_is(
    make_client: MakeClient, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still but for what is waited."""
    monkeypatch.setattr("time.monotonic", lambda: sum(waited))
    server = Scripted([good(HEALTH)])
    server.listen()
    known = make_client(server.url, patience_seconds=30.0)
    known.health()
    server.close()
    with pytest.raises(ServerUnreachable):
        make_client(server.url, patience_seconds=30.0).health()
    assert sum(waited) == pytest.approx(1.0)
    waited.clear()
    with pytest.raises(ServerUnreachable):
        known.health()
    assert sum(waited) == pytest.approx(30.0)
