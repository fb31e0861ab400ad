"""The client against the server's OpenAPI document: no route without a method, no documented field without an
attribute. A route or a field that is new fails here until the client has it."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

import kargah.client
from kargah.app.server import Application
from kargah.client import Client, routes
from kargah.client.records import Record, UploadStarted
from kargah.client.routes import Route
from kargah.client.training_config import Lora, TrainingConfig

Document = dict[str, Any]
ROOM = Path(kargah.client.__file__).parent

# The record for a schema of the server that has another name.
RENAMED = {
    "Begun": "DownloadStarted",
    "Steered": "DownloadState",
    "Started": "RunState",
    "RunStatus": "RunState",
}
RECORDS: dict[str, type[BaseModel]] = {
    name: value
    for name, value in {**vars(kargah.client), "UploadStarted": UploadStarted}.items()
    if inspect.isclass(value) and issubclass(value, BaseModel)
}
TIME = "2030-01-02T03:04:05Z"


@pytest.fixture
def document(application: Application) -> Document:
    return application.api.openapi()


def _operations(document: Document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _known_routes() -> dict[str, list[Route]]:
    """Routes by the name of the constant that holds them."""
    known: dict[str, list[Route]] = {}
    for name, value in vars(routes).items():
        if isinstance(value, Route):
            known[name] = [value]
        elif isinstance(value, routes.DownloadRoutes):
            known[name] = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return known


def _places(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_every_route_of_the_server_is_one_of_the_client_and_the_other_way_round(document: Document) -> None:
    served = {(method, _places(path)) for method, path, _ in _operations(document)}
    known = [(route.method, _places(route.path)) for each in _known_routes().values() for route in each]
    assert len(known) == len(set(known))
    assert served - set(known) == set(), "the client lacks a route"
    assert set(known) - served == set(), "the client knows a route that there is not"


def test_every_route_of_the_client_is_used_by_a_method() -> None:
    used = set()
    for file in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
    fields = {field.name for field in dataclasses.fields(routes.DownloadRoutes)}
    assert {*_known_routes(), *fields} - used == set()


def test_every_group_says_what_its_methods_do() -> None:
    with Client("http://127.0.0.1:9", language="en") as client:
        groups = [value for name, value in vars(client).items() if not name.startswith("_")]
        for owner in (client, *groups):
            for name, method in inspect.getmembers(owner, inspect.ismethod):
                if not name.startswith("_"):
                    assert method.__doc__, f"{type(owner).__name__}.{name}"
                    hints = inspect.signature(method)
                    assert hints.return_annotation is not inspect.Signature.empty, name


def test_every_parameter_of_a_query_is_one_that_the_client_sends(document: Document) -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in ROOM.glob("*.py"))
    named = {
        parameter["name"]
        for _, _, operation in _operations(document)
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query"
    }
    # The id of a download is `{kind}Id` there.
    missing = {name for name in named - {"modelId", "datasetId"} if f'"{name}"' not in text}
    assert missing == set()


def test_every_field_of_an_answer_is_an_attribute_that_takes_it(document: Document) -> None:
    checked = set()
    for name in _answered(document):
        record = RECORDS.get(RENAMED.get(name, name))
        assert record is not None, f"no record for {name}"
        schema = document["components"]["schemas"][name]
        aliases = {field.alias: attribute for attribute, field in record.model_fields.items()}
        for field in schema["properties"]:
            assert field in aliases, f"{record.__name__} has no attribute for {field}"
        for nulls in (False, True):
            value = _sample(document, {"$ref": f"#/components/schemas/{name}"}, name, nulls)
            read = record.model_validate(value)
            assert set(read.model_extra or {}) == set(), name
            assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == value
        checked.add(name)
    assert {"Asset", "Dataset", "TrainingStatus", "Comparison", "Begun"} <= checked


def test_every_time_is_one_that_knows_its_zone() -> None:
    for record in RECORDS.values():
        for name, field in record.model_fields.items():
            if name.endswith("_at") or name in ("timestamp", "until"):
                adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
                assert adapter.validate_python(TIME).utcoffset() is not None
                with pytest.raises(ValidationError):
                    adapter.validate_python("2030-01-02T03:04:05")


def test_every_field_of_a_configuration_is_one_of_the_record(document: Document) -> None:
    schemas = document["components"]["schemas"]
    for record, name in ((TrainingConfig, "ConfigBody"), (Lora, "LoraBody")):
        assert {to_camel(field) for field in record.model_fields} == set(schemas[name]["properties"])
        for nulls in (False, True):
            record.model_validate(_sample(document, schemas[name], name, nulls))
    with pytest.raises(ValidationError):
        TrainingConfig(epoks=3)  # type: ignore[call-arg]


def test_records_are_exported() -> None:
    assert set(kargah.client.__all__) >= {name for name in RECORDS if name not in ("UploadStarted",)}
    assert all(issubclass(record, Record) for record in RECORDS.values() if record not in (TrainingConfig, Lora))


def _answered(document: Document) -> list[str]:
    """Names of the schemas that good answers hold, those inside them too, the envelope's own left out."""
    waiting = [
        response["content"]["application/json"]["schema"]
        for _, _, operation in _operations(document)
        for status, response in operation["responses"].items()
        if status < "300" and response.get("content", {}).get("application/json", {}).get("schema")
    ]
    found: list[str] = []
    while waiting:
        text = str(waiting.pop())
        for name in re.findall(r"#/components/schemas/([^'\"]+)", text):
            if name not in found:
                found.append(name)
                waiting.append(document["components"]["schemas"][name])
    return [name for name in found if not re.match(r"Ok[A-Z_]", name) and name not in ("Page", "OkAssets")]


def _sample(document: Document, schema: dict[str, Any], name: str, nulls: bool) -> Any:
    """A value of a schema; with `nulls` None wherever it may be."""
    if "$ref" in schema:
        inner = schema["$ref"].rpartition("/")[2]
        return _sample(document, document["components"]["schemas"][inner], name, nulls)
    if "anyOf" in schema:
        kinds = [option for option in schema["anyOf"] if option.get("type") != "null"]
        if nulls and len(kinds) < len(schema["anyOf"]):
            return None
        return _sample(document, kinds[0], name, nulls) if kinds else None
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        if "properties" in schema:
            return {key: _sample(document, value, key, nulls) for key, value in schema["properties"].items()}
        extra = schema.get("additionalProperties", {})
        key = schema.get("propertyNames", {}).get("enum", ["نام"])[0]
        return {key: _sample(document, extra if isinstance(extra, dict) else {}, name, nulls)}
    if kind == "array":
        return [_sample(document, schema["items"], name, nulls)]
    if kind == "string":
        return TIME if name.endswith(("At", "Since")) or name in ("timestamp", "until") else "متن"
    return {"integer": 3, "number": 0.5, "boolean": True}.get(str(kind), {"هر": "چیز"})
