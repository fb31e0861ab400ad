"""What a check of the catalog finds: every answer a hub can give of a repository, over real sockets."""

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from faults import Fault, FaultProxy
from scripted_hub import Said, ScriptedHub
from workshop import SMALL, RunningHub

from kargah.assets.catalog import Entry
from kargah.hub.catalog_check import PARALLEL, EntryReport, check_entries
from kargah.hub.endpoint import Endpoint
from kargah.text.languages import LANGUAGES

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def scripted() -> Iterator[ScriptedHub]:
    with ScriptedHub() as running:
        yield running


def _entry(id: str = "org/it", kind: str = "model", **more: Any) -> Entry:
    about = {"fa": "شرح", "en": "about"}
    return Entry.model_validate({"id": id, "huggingfaceId": id, "kind": kind, "name": id, "description": about, **more})


def _all(entries: list[Entry], *endpoints: str | Endpoint, **more: Any) -> list[EntryReport]:
    places = [place if isinstance(place, Endpoint) else Endpoint(place) for place in endpoints]
    return list(check_entries(entries, places, threading.Event(), settings=SMALL, **more))


def _one(entry: Entry, *endpoints: str | Endpoint, **more: Any) -> EntryReport:
    (report,) = _all([entry], *endpoints, **more)
    return report


def _codes(report: EntryReport) -> list[str]:
    for finding in report.findings:
        for language in LANGUAGES:
            assert finding.sentence(language)
    return [finding.code for finding in report.findings]


def test_what_the_hub_has_is_well(hub: RunningHub) -> None:
    hub.add("org/it", {"config.json": b"{}", "model.safetensors": b"weights"})
    hub.add("org/data", {"train.csv": b"text,label\nx,1\n"}, kind="datasets")
    reports = _all([_entry(), _entry("org/data", "dataset")], hub.url)
    assert [report.status for report in reports] == ["ok", "ok"]
    assert all(len(report.commit or "") == 40 for report in reports)


def test_pins_are_held_against_a_real_hub(hub: RunningHub) -> None:
    hub.add("org/it", {"config.json": b"{}", "model.safetensors": b"weights", "tf_model.h5": b"another copy"})
    commit = _one(_entry(), hub.url).commit
    blob, other = (f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (b"weights", b"others"))
    pinned = {"revision": commit, "sizeBytes": 9}
    right = {"model.safetensors": {"digest": blob, "sizeBytes": 7}}
    assert _codes(_one(_entry(**pinned, digests=right), hub.url)) == []
    differs = _one(_entry(**pinned | {"sizeBytes": 21}), hub.url)
    assert [(f.code, f.params["expected"], f.params["actual"]) for f in differs.findings] == [("sizeDiffers", 21, 9)]
    digests = {"model.safetensors": {"digest": other, "sizeBytes": 8}, "gone.json": {"digest": blob}}
    found = _one(_entry(**pinned, digests=digests), hub.url)
    assert _codes(found) == ["digestDiffers", "sizeDiffers", "fileMissing"]
    assert _codes(_one(_entry(revision="f" * 40), hub.url)) == ["revisionGone"]


def test_a_digest_of_another_kind_contradicts_nothing(hub: RunningHub) -> None:
    hub.add("org/it", {"config.json": b"{}", "model.safetensors": b"weights"})
    digests = {"config.json": {"digest": f"sha256:{'0' * 64}"}}
    assert _codes(_one(_entry(digests=digests), hub.url)) == []


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_repository_that_moved(scripted: ScriptedHub, status: int) -> None:
    scripted.say("/api/models/org/it", Said(status, "moved", {"Location": "/api/models/new-org/it"}))
    scripted.has("new-org/it")
    report = _one(_entry(), scripted.url)
    assert report.status == "moved"
    assert report.findings[0].params == {"newId": "new-org/it"}


def test_an_answer_under_another_id_is_a_move_too_and_its_revision_is_asked_there(scripted: ScriptedHub) -> None:
    scripted.has("org/it", id="new-org/it")
    scripted.say("/api/models/new-org/it/revision/v1", Said(404, {}, {"X-Error-Code": "RevisionNotFound"}))
    assert _codes(_one(_entry(revision="v1"), scripted.url)) == ["moved", "revisionGone"]


def test_moved_and_hidden(scripted: ScriptedHub) -> None:
    scripted.say("/api/models/org/it", Said(307, "moved", {"Location": "/api/models/new-org/it"}))
    scripted.say("/api/models/new-org/it", Said(401, {"error": "Invalid username or password."}))
    report = _one(_entry(), scripted.url)
    assert _codes(report) == ["moved", "vanished"]
    assert report.findings[0].params == {"newId": "new-org/it"}


def test_an_id_of_the_hub_that_is_none_is_not_repeated(scripted: ScriptedHub) -> None:
    scripted.has("org/it", id="\x1b[2Jevil")
    assert _codes(_one(_entry(), scripted.url)) == ["unreachable"]


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/it is restricted"}
DISABLED = {"X-Error-Message": "Access to this resource is disabled."}


@pytest.mark.parametrize(
    ("said", "more", "codes", "serious"),
    [
        (Said(404, {}, {"X-Error-Code": "RepoNotFound"}), {}, ["vanished"], True),
        (Said(404, {"error": "Not found"}), {}, ["vanished"], True),
        (Said(410, {}), {}, ["vanished"], True),
        (Said(401, {}, {"X-Error-Code": "RepoNotFound"}), {}, ["vanished"], True),
        (Said(401, {}, {"X-Error-Message": "Invalid username or password."}), {}, ["vanished"], True),
        (Said(403, {}, GATED), {}, ["gated"], True),
        (Said(401, {}, GATED), {"gated": True}, ["gated"], False),
        (Said(403, {}, DISABLED), {}, ["disabled"], True),
        (Said(401, {}, {"X-Error-Message": "Invalid credentials in Authorization header"}), {}, ["unreachable"], True),
        (Said(403, {}), {}, ["unreachable"], True),
        (Said(404, "<html>a page</html>"), {}, ["unreachable"], True),
        (Said(200, "<html>log in</html>"), {}, ["unreachable"], True),
        (Said(511, "<html>log in</html>"), {}, ["unreachable"], True),
        (Said(200, ["a list"]), {}, ["unreachable"], True),
        (Said(307, "", {"Location": "/api/models/org/it"}), {}, ["unreachable"], True),
    ],
)
def test_refusals(scripted: ScriptedHub, said: Said, more: dict[str, Any], codes: list[str], serious: bool) -> None:
    scripted.say("/api/models/org/it", said)
    report = _one(_entry(**more), scripted.url)
    assert _codes(report) == codes
    assert report.findings[0].serious is serious
    assert report.status == codes[0]


@pytest.mark.parametrize(
    ("info", "more", "codes"),
    [
        ({"gated": "manual"}, {}, ["gated"]),
        ({"gated": "auto"}, {"gated": True}, ["gated"]),
        ({}, {"gated": True}, ["notGated"]),
        ({"private": True}, {}, ["private"]),
        ({"disabled": True, "siblings": []}, {}, ["disabled"]),
        ({"siblings": [{"rfilename": "config.json"}, {"rfilename": "pytorch_model.bin"}]}, {}, ["pickledWeights"]),
        ({"siblings": [{"rfilename": "config.json"}, {"rfilename": "tf_model.h5"}]}, {}, ["unsafeWeights"]),
        ({"siblings": [{"rfilename": "README.md"}]}, {}, ["noFiles"]),
        ({"siblings": []}, {}, ["noFiles"]),
        ({"siblings": [{"rfilename": "../../etc/passwd"}]}, {}, ["unsafePath"]),
        ({"config": {"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}}, {}, ["needsCode"]),
        ({"siblings": None}, {}, []),
        ({"cardData": {"license": "mit"}}, {"licence": "mit"}, []),
        ({"cardData": {"license": "MIT"}}, {"licence": "mit"}, []),
        ({"cardData": {"license": "cc-by-nc-4.0"}}, {"licence": "mit"}, ["licenceDiffers"]),
        ({"cardData": {"license": ["mit", "apache-2.0"]}}, {"licence": "apache-2.0"}, []),
        ({"cardData": {"license": "other", "license_name": "own-terms"}}, {"licence": "own-terms"}, []),
        ({"tags": ["license:gpl-3.0"]}, {"licence": "mit"}, ["licenceDiffers"]),
        ({"cardData": {"license": "mit"}}, {}, []),
        ({"cardData": "odd", "tags": 7, "config": [], "safetensors": "?"}, {"licence": "mit"}, []),
    ],
)
def test_what_the_hub_says(scripted: ScriptedHub, info: dict[str, Any], more: dict[str, Any], codes: list[str]) -> None:
    scripted.has("org/it", **info)
    report = _one(_entry(**more), scripted.url)
    assert _codes(report) == codes
    harmless = {"notGated", "private", "pickledWeights"} | ({"gated"} if more.get("gated") else set())
    assert [finding.serious for finding in report.findings] == [code not in harmless for code in codes]


def test_files_of_a_data_set(scripted: ScriptedHub) -> None:
    scripted.has("org/data", "dataset", siblings=[{"rfilename": "data.py"}, {"rfilename": "README.md"}])
    assert _codes(_one(_entry("org/data", "dataset"), scripted.url)) == ["needsCode"]
    scripted.has("org/data", "dataset", siblings=[{"rfilename": "data/train-0.csv"}])
    files = {"train": "data/train-*.csv", "test": "data/test.csv"}
    report = _one(_entry("org/data", "dataset", files=files), scripted.url)
    assert [(f.code, f.params) for f in report.findings] == [("fileMissing", {"file": "data/test.csv"})]


def test_every_endpoint_is_asked_and_the_token_goes_to_the_first_alone(scripted: ScriptedHub) -> None:
    with ScriptedHub() as mirror:
        scripted.has("org/it")
        scripted.say("/api/models/org/there", Said(307, "", {"Location": f"{mirror.url}/api/models/org/there"}))
        mirror.has("org/there")
        reports = _all([_entry(), _entry("org/there")], Endpoint(scripted.url, "secret"), mirror.url)
        found = {(report.entry.id, report.endpoint): report.status for report in reports}
        assert found == {
            ("org/it", scripted.url): "ok",
            ("org/there", scripted.url): "ok",
            ("org/it", mirror.url): "vanished",
            ("org/there", mirror.url): "ok",
        }
        assert {request.headers.get("authorization") for request in scripted.asked()} == {"Bearer secret"}
        assert {request.headers.get("authorization") for request in mirror.asked()} == {None}


def test_a_wait_that_is_asked_for_and_failures_that_pass(scripted: ScriptedHub) -> None:
    info = scripted.has("org/it")
    busy = Said(429, {}, {"Retry-After": "0"})
    scripted.say("/api/models/org/it", busy, Said(503, "down"), busy, Said(body=info))
    waits: list[tuple[str, float]] = []
    report = _one(_entry(), scripted.url, waits=lambda url, seconds: waits.append((url, seconds)))
    assert report.status == "ok"
    assert len(scripted.asked()) == 4
    assert [url for url, _ in waits] == [scripted.url] * 2


def test_an_answer_that_breaks_off_is_asked_for_again(hub: RunningHub) -> None:
    hub.add("org/it", {"config.json": b"{}", "model.safetensors": b"weights"})
    with FaultProxy(
        hub.url, Fault(on="/api/", times=2, cut_every=40), Fault(on="/api/", times=1, refuse=True)
    ) as proxy:
        assert _one(_entry(), proxy.url).status == "ok"
        assert len(proxy.requests) == 4


def test_an_endpoint_that_never_lets_in_ends_as_rate_limited(scripted: ScriptedHub) -> None:
    scripted.say("/api/models/org/it", Said(429, {}, {"Retry-After": "0"}))
    (finding,) = _one(_entry(), scripted.url).findings
    assert (finding.code, finding.params["cause"]) == ("unreachable", "HUB_RATE_LIMITED")
    assert len(scripted.asked()) == SMALL.rate_limit_retries + 1


def test_that_nobody_is_there_is_found_out_once(scripted: ScriptedHub) -> None:
    entries = [_entry(f"org/it{number}") for number in range(30)]
    for entry in entries:
        scripted.say(f"/api/models/{entry.id}", Said(502, "down"))
    reports = _all(entries, scripted.url)
    assert {report.status for report in reports} == {"unreachable"}
    assert all(report.endpoint_silent for report in reports)
    assert len(scripted.asked()) <= PARALLEL * (SMALL.idle_retries + 1)
    report = _one(_entry(), NOBODY)
    assert report.endpoint_silent
    assert "ConnectionRefusedError" in report.findings[0].params["reason"]


def test_a_hub_that_fails_for_one_entry_is_asked_about_the_others(scripted: ScriptedHub) -> None:
    entries = [_entry(f"org/it{number}") for number in range(12)]
    for entry in entries[1:]:
        scripted.has(entry.id)
    scripted.say(f"/api/models/{entries[0].id}", Said(500, "down"))
    reports = _all(entries, scripted.url)
    assert sorted(report.status for report in reports) == ["ok"] * 11 + ["unreachable"]


def test_a_few_at_the_same_time_and_what_is_built_in_not_at_all(scripted: ScriptedHub) -> None:
    entries = [_entry(f"org/it{number}") for number in range(3 * PARALLEL)]
    for entry in entries:
        scripted.has(entry.id)
    together = threading.Barrier(PARALLEL)
    guard, now, most = threading.Lock(), 0, 0

    def count() -> None:
        nonlocal now, most
        with guard:
            now += 1
            most = max(most, now)
        together.wait(20)
        with guard:
            now -= 1

    scripted.before = count
    reports = _all([*entries, _entry("kargah/own", source="builtin")], scripted.url)
    assert len(reports) == len(entries)
    assert most == PARALLEL
    assert not scripted.asked("kargah/own")


def test_whoever_stops_reading_stops_the_asking(scripted: ScriptedHub) -> None:
    entries = [_entry(f"org/it{number}") for number in range(60)]
    for entry in entries:
        scripted.has(entry.id)
    stop, closed = threading.Event(), threading.Event()
    # The hub answers once and then no more.
    scripted.before = lambda: None if len(scripted.asked()) == 1 else (closed.wait(20), None)[1]
    reports = check_entries(entries, [Endpoint(scripted.url)], stop, settings=SMALL)
    next(reports)
    reports.close()  # type: ignore[attr-defined]
    closed.set()
    assert stop.is_set()
    assert len(scripted.asked()) < len(entries)


def test_the_proxy_of_the_environment_is_used(hub: RunningHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/it", {"config.json": b"{}", "model.safetensors": b"weights"})
    with FaultProxy(hub.url) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert _one(_entry(), "http://hub.example").status == "ok"
        assert proxy.requests[0].target == "http://hub.example/api/models/org/it"
