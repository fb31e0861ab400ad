"""Rubbish in every field of every body, query and path: a clear refusal, nothing begun, never a server error."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from living import Living
from openapi_walk import RUBBISH, Operation, as_json, operations, places, put, validator

GOOD: dict[str, Any] = {
    "/api/models/download/start": {"modelId": "nobody/approved-this"},
    "/api/models/download/pause": {"modelId": "nobody/approved-this"},
    "/api/models/download/resume": {"modelId": "nobody/approved-this"},
    "/api/models/download/retry": {"modelId": "nobody/approved-this"},
    "/api/models/download/cancel": {"modelId": "nobody/approved-this", "discard": True},
    "/api/datasets/download/start": {"datasetId": "nobody/approved-this"},
    "/api/datasets/download/pause": {"datasetId": "nobody/approved-this"},
    "/api/datasets/download/resume": {"datasetId": "nobody/approved-this"},
    "/api/datasets/download/retry": {"datasetId": "nobody/approved-this"},
    "/api/datasets/download/cancel": {"datasetId": "nobody/approved-this", "discard": True},
    "/api/hub/endpoints/test": {"url": "http://nobody.approved.invalid"},
    # The base model is none that is approved, so that nothing of the right form can start either.
    "/api/training/start": {
        "baseModel": {"id": "nobody/approved-this"},
        "datasets": [{"id": "nobody/approved-this"}],
        "teacherModel": {"id": "nobody/approved-this"},
    },
    "/api/training/queue/{run_id}": {"position": 1},
    "/api/training/checkpoints/{checkpoint_id}/restore": {"name": "بازیابی"},
    "/api/training/checkpoints/{checkpoint_id}/pin": {"pinned": True},
    # Of a run that is none, so that nothing can go.
    "/api/training/checkpoints/prune": {"runId": "a" * 32, "keepLast": 1, "keepBest": True, "dryRun": True},
    "/api/training/clone/{run_id}": {
        "baseModel": {"id": "nobody/approved-this"},
        "datasets": [{"id": "nobody/approved-this"}],
        "teacherModel": {"id": "nobody/approved-this"},
    },
    "/api/training/adopt": {"path": "/nowhere", "move": True, "ticket": "0" * 32},
    "/api/catalog/requests": {"id": "HooshvareLab/bert-fa-base-uncased", "kind": "model", "reason": "لازم است"},
    "/api/catalog/requests/{request_id}/decline": {"note": "نه"},
}
"""A body of the right form for every operation that takes one, which finds nothing to work on."""

NO_WORD = (b"", b"null", b"\xef\xbb\xbf{}")

NEEDS_NO_BODY = {
    "/api/catalog/requests/{request_id}/decline",
    "/api/training/checkpoints/{checkpoint_id}/restore",
    "/api/training/clone/{run_id}",
}

TAKES_ANY = {"/api/catalog/requests", "/api/hub/endpoints/test", "/api/training/checkpoints/prune"}
"""What anybody may ask for: every body of the right form is taken, also one that names nothing."""

PERSIAN = re.compile("[\u0600-\u06ff]")
LEAK = re.compile(r"Traceback|File \"|sqlite|sqlalchemy|pydantic|SELECT |INSERT |/home/|/tmp/|/root/|\.py\b", re.I)
STREAMS = {"/api/events"}


@pytest.fixture(scope="module")
def http(live: Living) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, trust_env=False, timeout=60.0, headers={"Accept-Language": "fa"}) as client:
        yield client


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/api/openapi.json").json()
    return found


def _held(http: httpx.Client) -> tuple[Any, ...]:
    return (
        http.get("/api/analysis/training/jobs").json()["page"]["total"],
        sorted(asset["id"] for asset in http.get("/api/assets").json()["data"]),
        [asset["id"] for asset in http.get("/api/catalog/models").json()["data"] if asset["status"] == "downloading"],
    )


def _check_refusal(answer: httpx.Response, sent: str) -> dict[str, Any]:
    """A refusal is the envelope, in Persian here, and tells nothing of the inside."""
    body: dict[str, Any] = answer.json()
    assert answer.status_code < 500, (answer.status_code, sent[:300], answer.text[:300])
    assert body["ok"] is False
    assert re.fullmatch("[A-Z][A-Z_]+", body["error"]), (sent[:300], body)
    assert PERSIAN.search(body["message"]), (sent[:300], body)
    assert not LEAK.search(body["message"]), (sent[:300], body)
    if body["error"] == "VALIDATION_FAILED":
        assert body["details"], (sent[:300], body)
        for problem in body["details"]:
            assert set(problem) == {"field", "problem"}
            assert PERSIAN.search(problem["problem"]), (sent[:300], body)
            assert not LEAK.search(problem["problem"]), (sent[:300], body)
    return body


def test_every_body_is_in_the_table(document: dict[str, Any]) -> None:
    taking = {operation.path for operation in operations(document) if operation.schema is not None}
    assert taking <= set(GOOD), "a body of the right form is needed for each"


@pytest.mark.timeout(1200)
def test_every_field_of_every_body_refuses_rubbish(http: httpx.Client, document: dict[str, Any]) -> None:
    before = _held(http)
    num_sent = num_refused = 0
    for operation in operations(document):
        if operation.schema is None:
            continue
        admits = validator(document, operation.schema)
        for trail in [(), *dict.fromkeys(places(document, operation.schema))]:
            for rubbish in RUBBISH:
                text = as_json(put(GOOD[operation.path], trail, rubbish))
                answer = http.request(
                    operation.method, _filled(operation), content=text, headers={"Content-Type": "application/json"}
                )
                num_sent += 1
                if answer.status_code < 300:
                    assert operation.path in TAKES_ANY, (operation.path, trail, text[:300])
                    assert _is_admitted(admits, text), (operation.path, trail, text[:300])
                    continue
                body = _check_refusal(answer, f"{operation.path} {text}")
                num_refused += body["error"] == "VALIDATION_FAILED"
                if not _is_admitted(admits, text):
                    # A word that a fixed vocabulary does not have is the one thing with a code of its own.
                    assert body["error"] in ("VALIDATION_FAILED", "NOT_SUPPORTED"), (trail, text[:300], body)
                    fields = [problem["field"] for problem in body["details"]]
                    assert any(_names(field, trail) for field in fields), (trail, text[:300], fields)
    assert num_refused > num_sent / 2
    assert _held(http) == before


def _is_admitted(admits: Any, text: str) -> bool:
    try:
        value = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return False
    return bool(admits.is_valid(value)) if "\\ud800" not in text and "1e999" not in text else False


def _not_json(name: str) -> Any:
    raise ValueError(name)


def _names(field: str, trail: tuple[str, ...]) -> bool:
    """Whether a named field is the wrong one, or stands above or below it."""
    place = ".".join(trail) or "body"
    return field == "body" or place == "body" or field.startswith(place) or place.startswith(field)


def _filled(operation: Operation, **values: str) -> str:
    path = operation.path
    for parameter in operation.parameters:
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", values.get(parameter["name"], "a" * 32))
    return path


ODD_TEXTS = (
    "",
    " ",
    "x",
    "-1",
    "1.5",
    "NaN",
    "1e999",
    "9" * 400,
    "true",
    "null",
    "%00",
    "%ff%fe",
    "%ED%A0%80",
    "..%2F..%2F..%2Fetc%2Fpasswd",
    "%2e%2e%2f%2e%2e%2fetc",
    "%2Fetc%2Fpasswd",
    "%D9%85%DB%8C%E2%80%8C%D8%B4%D9%88%D8%AF",
    "%27%3B%20DROP%20TABLE%20runs%3B--",
    "a" * 20_000,
    "eyJhIjoxfQ",
)


def test_every_query_and_path_takes_rubbish_calmly(http: httpx.Client, document: dict[str, Any]) -> None:
    before = _held(http)
    num_refused = 0
    for operation in operations(document):
        if operation.method not in ("get", "delete"):
            continue
        for parameter in operation.parameters:
            for odd in ODD_TEXTS:
                name = parameter["name"]
                if parameter["in"] == "path":
                    url = _filled(operation, **{name: odd})
                elif parameter["in"] == "query":
                    others = "".join(f"&{other['name']}=x" for other in operation.parameters if _is_needed(other, name))
                    url = f"{_filled(operation)}?{name}={odd}{others}"
                else:
                    continue
                with http.stream(operation.method, url) as answer:
                    assert answer.status_code < 500, (operation.method, url[:300], answer.status_code)
                    if answer.status_code >= 400:
                        answer.read()
                        _check_refusal(answer, url)
                        num_refused += 1
    assert num_refused > 300
    assert _held(http) == before


def _is_needed(parameter: dict[str, Any], name: str) -> bool:
    return parameter["in"] == "query" and parameter["name"] != name and bool(parameter.get("required"))


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST", "TRACE", "GET", "HEAD", "PROPFIND"])
def test_a_wrong_method_says_which_are_right(http: httpx.Client, document: dict[str, Any], method: str) -> None:
    known: dict[str, set[str]] = {}
    for operation in operations(document):
        known.setdefault(_filled(operation), set()).add(operation.method.upper())
    num_wrong = 0
    for path, methods in known.items():
        if method in methods or (method == "HEAD" and "GET" in methods):
            continue
        answer = http.request(method, path)
        assert answer.status_code == 405, (method, path, answer.text[:200])
        assert set(answer.headers["Allow"].split(", ")) & methods, (path, answer.headers["Allow"])
        if method != "HEAD":
            assert _check_refusal(answer, path)["error"] == "METHOD_NOT_ALLOWED"
        num_wrong += 1
    assert num_wrong or method == "GET"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b"{'a': 1}",
        b'{"modelId": "a/b",}',
        b'{"modelId": "a/b", "modelId": 3}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\x00" * 100,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_body_that_is_no_json_object(http: httpx.Client, content: bytes) -> None:
    for path in GOOD:
        if (path in NEEDS_NO_BODY and content in NO_WORD) or (path in TAKES_ANY and content == NO_WORD[-1]):
            continue  # declining without a word, testing all endpoints, cloning as it was: nothing need be said
        answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text[:300]
        assert _check_refusal(answer, repr(content[:50]))["error"] == "VALIDATION_FAILED"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "é"])
def test_a_body_of_another_type(http: httpx.Client, kind: str) -> None:
    answer = http.post("/api/training/start", content=b"{}", headers={"Content-Type": kind.encode()})
    body = _check_refusal(answer, kind)
    assert (answer.status_code, body["error"]) == (400, "VALIDATION_FAILED")
    assert body["details"][0]["field"] == "Content-Type"


def test_a_body_beyond_the_limit(http: httpx.Client) -> None:
    content = b'{"modelId": "' + b"a" * 10_000_001 + b'"}'
    answer = http.post("/api/models/download/start", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, _check_refusal(answer, "long")["error"]) == (413, "TOO_LARGE")


@pytest.mark.parametrize(
    "path",
    [
        "/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/../../etc/passwd",
        "/api/datasets/..%2f..%2fetc/rows",
        "/api/docs/..%2f..%2fetc%2fpasswd",
        "/api/docs/%2e%2e%2f%2e%2e%2f__init__.py",
        "/api/nothing-here",
        "//etc/passwd",
        "/%00",
    ],
)
def test_a_path_that_climbs(live: Living, path: str) -> None:
    # By hand, for a client would tidy the path first.
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := line.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"root:" not in body
    assert head.split(b" ")[1] in (b"400", b"404"), head
    if b"application/json" in head:
        assert json.loads(body)["ok"] is False
