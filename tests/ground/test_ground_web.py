"""Who may ask, what may be sent, and the one shape of every answer, over the real application."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.app.server import Application, check_address
from kargah.ground.errors import Details, KargahError, TokenRequired, every_error
from kargah.ground.settings import Settings, load_settings
from kargah.ground.web.envelope import failure

PAGE = "http://page.example"
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, site_catalog: Path) -> Iterator[TestClient]:
    """One server for all that leaves no trace in it."""
    origins: Any = f"{PAGE},http://kargah.lan:8765"
    home = tmp_path_factory.mktemp("web")
    application = Application(Platform(Settings(home=home, catalog=site_catalog, cors_origins=origins)))
    with TestClient(
        application.asgi, base_url="http://127.0.0.1", headers={"Accept-Language": "en"}, raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, site_catalog: Path) -> Iterator[TestClient]:
    """A server that asks for a token, on an address that others reach."""
    application = Application(
        Platform(Settings(home=tmp_path_factory.mktemp("guarded"), catalog=site_catalog, token=TOKEN)),  # type: ignore[arg-type]
        "0.0.0.0",
    )
    with TestClient(application.asgi, base_url="http://10.0.0.7:8765", raise_server_exceptions=False) as client:
        yield client


def _refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert body["ok"] is False
    assert body["error"] == code
    assert body["message"]
    return body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "10.0.0.7"])
def test_a_foreign_host_is_refused(api: TestClient, host: str) -> None:
    _refused(api.get("/api/health", headers={"Host": host}), 403, "FOREIGN_ORIGIN")


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "localhost:1", "[::1]:8765", "kargah.lan:8765"])
def test_our_own_names_and_listed_hosts_are_let_in(api: TestClient, host: str) -> None:
    assert api.get("/api/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "https://page.example",
        "file://",
        "http://[broken",
        "chrome-extension://127.0.0.1",
    ],
)
def test_a_foreign_origin_is_refused(api: TestClient, origin: str) -> None:
    _refused(api.post("/api/training/start", json={}, headers={"Origin": origin}), 403, "FOREIGN_ORIGIN")


def test_our_own_origin_is_let_in(api: TestClient) -> None:
    answer = api.get("/api/health", headers={"Host": "127.0.0.1:8765", "Origin": "http://127.0.0.1:8765"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_a_listed_origin_gets_its_preflight_and_its_answer(api: TestClient) -> None:
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "content-type, last-event-id",
    }
    answer = api.options("/api/assets/x", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    assert "last-event-id" in answer.headers["access-control-allow-headers"]
    assert "Origin" in answer.headers["vary"]
    assert api.get("/api/health", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == PAGE
    assert api.get("/api/nowhere", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == PAGE
    assert api.options("/api/assets/x", headers={**asked, "Origin": "http://evil.example"}).status_code == 403


def test_a_token_is_asked_for(guarded: TestClient) -> None:
    _refused(guarded.get("/api/assets"), 401, "UNAUTHORIZED")
    for given in ("Bearer wrong", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"):
        _refused(guarded.get("/api/assets", headers={"Authorization": given.encode()}), 401, "UNAUTHORIZED")
    assert guarded.get("/api/assets", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert guarded.get("/api/assets", headers={"Cookie": f"kargah_token={TOKEN}"}).status_code == 200
    assert guarded.get("/api/health").status_code == 200


def test_rebinding_a_name_does_not_reach_an_open_address(guarded: TestClient) -> None:
    given = {"Authorization": f"Bearer {TOKEN}"}
    _refused(guarded.get("/api/assets", headers={**given, "Host": "evil.example"}), 403, "FOREIGN_ORIGIN")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_must_be_json(api: TestClient, kind: str) -> None:
    answer = api.post("/api/training/start", content=b"{}", headers={"Content-Type": kind})
    body = _refused(answer, 400, "VALIDATION_FAILED")
    assert body["details"][0]["field"] == "Content-Type"


def test_an_upload_must_be_multipart(api: TestClient) -> None:
    _refused(api.post("/api/datasets/upload", json={}), 400, "VALIDATION_FAILED")


def test_a_body_that_is_too_large_is_refused_announced_or_not(api: TestClient) -> None:
    long = b'{"baseModel": "' + b"a" * 10_000_001 + b'"}'
    json_type = {"Content-Type": "application/json"}
    body = _refused(api.post("/api/training/start", content=long, headers=json_type), 413, "TOO_LARGE")
    assert "10000000" in body["message"]
    parts = (long[at : at + 100_000] for at in range(0, len(long), 100_000))
    answer = api.post("/api/training/start", content=parts, headers=json_type)
    assert "content-length" not in answer.request.headers
    _refused(answer, 413, "TOO_LARGE")


def test_draining_refuses_with_a_time_to_come_back(application: Application) -> None:
    with TestClient(application.asgi, base_url="http://127.0.0.1") as client:
        application.begin_drain()
        answer = client.get("/api/health")
    _refused(answer, 503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/api/health", "/api/nowhere", "/api/docs"])
def test_strict_headers_stand_on_every_answer(api: TestClient, path: str) -> None:
    headers = api.get(path).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_what_is_not_there_and_what_cannot_be_done(api: TestClient) -> None:
    for path in ("/api/nowhere", "/nowhere", "/api/training/status"):
        _refused(api.get(path), 404, "NOT_FOUND")
    answer = api.put("/api/health", json={})
    body = _refused(answer, 405, "METHOD_NOT_ALLOWED")
    assert "PUT" in body["message"]
    assert answer.headers["allow"] == "GET"


def test_an_unexpected_error_tells_nothing_of_the_inside(application: Application) -> None:
    @application.api.get("/api/broken")
    def broken() -> None:
        raise RuntimeError("/srv/secret SELECT * FROM runs")

    with TestClient(application.asgi, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.get("/api/broken")
    _refused(answer, 500, "INTERNAL")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "sent", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"baseModel": "\\ud800"}', b"[" * 100_000, b'{"a": NaN}']
)
def test_a_broken_body_is_400_in_the_envelope(api: TestClient, sent: bytes) -> None:
    answer = api.post("/api/training/start", content=sent, headers={"Content-Type": "application/json"})
    body = _refused(answer, 400, "VALIDATION_FAILED")
    assert all(set(problem) == {"field", "problem"} for problem in body["details"])
    assert body["details"]


def test_the_language_is_that_of_the_reader_and_persian_when_none_is_said(api: TestClient) -> None:
    english = api.get("/api/nowhere", headers={"Accept-Language": "en"}).json()["message"]
    for header in ("fa", "de"):
        answer = api.get("/api/nowhere", headers={"Accept-Language": header})
        assert answer.json()["message"] != english
        # Persian letters stand as they are.
        assert "\\u06" not in answer.text
        assert answer.json()["message"] in answer.content.decode("utf-8")


def test_every_error_has_its_own_status_and_none_is_unmapped() -> None:
    for cls in every_error():
        assert cls.status in (400, 401, 403, 404, 405, 409, 413, 416, 429, 500, 503, 507), cls
        assert cls.code.isupper()
    codes: dict[str, set[int]] = {}
    for cls in every_error():
        codes.setdefault(cls.code, set()).add(cls.status)
    assert {code: found for code, found in codes.items() if len(found) > 1} == {}


def test_details_and_retry_after_are_answered() -> None:
    class Busy(KargahError):
        code, status, retry_after_seconds = "UNAVAILABLE", 503, 7

    details: Details = {"freeBytes": 3, "نام": "متن"}
    answer = failure(Busy(details=details), "fa")
    assert json.loads(bytes(answer.body))["details"] == details
    assert "متن".encode() in bytes(answer.body)
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "kargah.lan"])
def test_no_open_address_without_a_token(tmp_path: Path, host: str) -> None:
    for token in (None, "short"):
        with pytest.raises(TokenRequired):
            check_address(load_settings(home=tmp_path, token=token), host)
    check_address(load_settings(home=tmp_path, token=TOKEN), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_loopback_needs_none(tmp_path: Path, host: str) -> None:
    check_address(load_settings(home=tmp_path), host)
