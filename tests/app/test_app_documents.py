"""What the server says of itself: health, the OpenAPI document, and its page, served from this machine alone."""

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from living import NOBODY
from starlette.testclient import TestClient

from kargah import __version__
from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.ground.errors import CannotStart, KargahError, every_error
from kargah.ground.settings import Settings

# The contract's paths that this version has.
PATHS = {
    ("get", "/api/health"),
    ("get", "/api/catalog/models"),
    ("get", "/api/catalog/datasets"),
    ("get", "/api/assets"),
    ("delete", "/api/assets/{asset_id}"),
    ("get", "/api/datasets"),
    ("get", "/api/datasets/{dataset_id}"),
    ("get", "/api/datasets/{dataset_id}/rows"),
    ("post", "/api/datasets/upload"),
    ("post", "/api/models/import"),
    ("post", "/api/datasets/import"),
    *(
        (method, f"/api/{kind}/download/{step}")
        for kind in ("models", "datasets")
        for method, step in (
            ("post", "start"),
            ("post", "pause"),
            ("post", "resume"),
            ("post", "retry"),
            ("post", "cancel"),
            ("get", "progress"),
        )
    ),
    ("get", "/api/downloads"),
    ("post", "/api/training/start"),
    ("post", "/api/training/adopt"),
    ("post", "/api/training/pause/{run_id}"),
    ("post", "/api/training/resume/{run_id}"),
    ("post", "/api/training/stop/{run_id}"),
    ("get", "/api/training/status/{run_id}"),
    ("get", "/api/training/stream/{run_id}"),
    ("get", "/api/training/assets"),
    ("get", "/api/training/checkpoints/{checkpoint_id}"),
    ("delete", "/api/training/checkpoints/{checkpoint_id}"),
    ("get", "/api/training/checkpoints/{checkpoint_id}/download"),
    ("post", "/api/training/checkpoints/{checkpoint_id}/restore"),
    ("post", "/api/training/checkpoints/{checkpoint_id}/pin"),
    ("post", "/api/training/checkpoints/prune"),
    ("post", "/api/training/clone/{run_id}"),
    ("get", "/api/hub/endpoints"),
    ("post", "/api/hub/endpoints/test"),
    ("get", "/api/events"),
    ("get", "/api/analysis/training/jobs"),
    ("get", "/api/analysis/training/status/{run_id}"),
    ("get", "/api/analysis/training/compare"),
    ("get", "/api/analysis/training/export/{run_id}"),
}
# Ends of streams and runs, not of requests; and bases that are never raised themselves.
ELSEWHERE = {"BAD_REQUEST", "FORBIDDEN", "CONFLICT", "NOT_FOUND", "METHOD_NOT_ALLOWED", "UPLOAD_INTERRUPTED"}
# Told of one directory among several.
ELSEWHERE |= {"RUN_KNOWN", "RUN_ALIVE"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, site_catalog: Any) -> Iterator[TestClient]:
    settings = Settings(home=tmp_path_factory.mktemp("documents"), catalog=site_catalog, hub_endpoint=(NOBODY,))
    application = Application(Platform(settings))
    with TestClient(application.asgi, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def document(api: TestClient) -> dict[str, Any]:
    return dict(api.get("/api/openapi.json").json())


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_health(api: TestClient) -> None:
    body = api.get("/api/health").json()
    assert body["ok"] is True
    assert body["data"] == {
        "status": "ready",
        "version": __version__,
        "database": "sqlite",
        "schemaRevision": body["data"]["schemaRevision"],
        "offline": False,
        "computeInstalled": True,
    }


def test_every_path_of_the_contract_is_documented(document: dict[str, Any]) -> None:
    assert {(method, path) for method, path, _ in _operations(document)} >= PATHS


def test_every_answer_is_an_envelope_and_422_is_never_one(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for method, path, operation in _operations(document):
        place = f"{method} {path}"
        assert "422" not in operation["responses"], place
        for status, response in operation["responses"].items():
            schema = response.get("content", {}).get("application/json", {}).get("schema", {})
            name = schema.get("$ref", "").rpartition("/")[2]
            if status >= "400":
                assert name == "Failure", place
            elif name:
                properties = document["components"]["schemas"][name]["properties"]
                assert {"ok", "data"} <= set(properties), place
        if "requestBody" in operation or operation.get("parameters"):
            assert "400" in operation["responses"], place
        for common in ("401", "403", "500", "503"):
            assert common in operation["responses"], place
        assert operation.get("description") or operation.get("summary"), place


def test_every_error_code_is_documented_somewhere(document: dict[str, Any]) -> None:
    for room in ("assets.errors", "datasets.errors", "runs.errors", "ground.errors"):
        import_module(f"kargah.{room}")
    said = " ".join(
        response["description"]
        for _, _, operation in _operations(document)
        for response in operation["responses"].values()
    )
    documented = set(re.findall(r"`([A-Z_]+)`", said))
    ours = [cls for cls in every_error() if not issubclass(cls, CannotStart) and cls.__module__.startswith("kargah.")]
    # What is wrong inside a file ends the stream of its upload.
    raised = {cls.code for cls in ours if cls is not KargahError and not _ends_an_upload(cls)}
    assert raised - ELSEWHERE - documented == set()


def _ends_an_upload(cls: type[KargahError]) -> bool:
    ends = {"kargah.datasets.errors", "kargah.hub.import_errors"}
    return cls.__module__ in ends and cls.__name__ not in ("DatasetDamaged",)


def test_every_schema_that_is_named_is_there(document: dict[str, Any]) -> None:
    named = set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', str(document).replace("'", '"')))
    assert named
    assert named <= set(document["components"]["schemas"])


def test_names_that_cross_http_are_camel_case(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        for field in schema.get("properties", {}):
            assert "_" not in field, f"{name}.{field}"


def test_the_page_and_its_files_come_from_here_and_name_no_other_host(api: TestClient) -> None:
    page = api.get("/api/docs")
    assert page.status_code == 200
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) >= 4
    for place in named:
        assert place.startswith("/api/docs/"), place
        answer = api.get(place)
        assert answer.status_code == 200, place
        assert len(answer.content) > 100, place
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script>" not in page.text, "the content policy forbids inline scripts"
    start = api.get("/api/docs/start.js").text
    assert "//" not in start.replace("/api/openapi.json", "")
    assert api.get("/api/docs/other.js").json()["error"] == "NOT_FOUND"


def test_topics_that_are_none(api: TestClient) -> None:
    for topics in ("", "weather", "run:x", "runs,weather", "run:" + "A" * 32):
        answer = api.get("/api/events", params={"topics": topics})
        assert (answer.status_code, answer.json()["error"]) == (400, "VALIDATION_FAILED"), topics
