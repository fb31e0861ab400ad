"""What the OpenAPI document says can be sent, walked field by field, and the rubbish that is sent instead."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

RAW = {"NaN": "NaN", "Infinity": "Infinity", "-Infinity": "-Infinity", "1e999": "1e999", "-0.0": "-0.0"}
"""Numbers that JSON has no way to write, or that Python writes otherwise: put into the text as they are."""

DEEP: Any = None
for _ in range(300):
    DEEP = [DEEP]

RUBBISH: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**9,
    -(10**18),
    10**400,
    *(f"raw:{name}" for name in RAW),
    "",
    " ",
    "x",
    "NaN",
    "۱۲",
    "می‌شود",
    "\x00",
    "a\x00b",
    "raw:surrogate",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b/c",
    "'; DROP TABLE runs; --",
    "{id}",
    "a" * 20_000,
    [],
    [None],
    ["x"] * 2_000,
    {},
    {"id": None},
    {"x": 1},
    {"": ""},
    DEEP,
)


@dataclass(frozen=True)
class Operation:
    """One method of one path. `schema` is that of its JSON body, or None."""

    path: str
    method: str
    parameters: list[dict[str, Any]]
    schema: dict[str, Any] | None


def operations(document: dict[str, Any]) -> list[Operation]:
    """Every operation of the document."""
    found = []
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            content = described.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            found.append(Operation(path, method, described.get("parameters", []), schema))
    return found


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Tells by the document alone whether a body is of the right form."""
    return jsonschema_rs.validator_for({**schema, "components": document["components"]})


def places(document: dict[str, Any], schema: dict[str, Any], trail: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The trail of every field of a body, through every alternative, and one that no schema knows at each object."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from places(document, alternative, trail)
    if "items" in schema:
        yield (*trail, "0")
        yield from places(document, schema["items"], (*trail, "0"))
    if "properties" in schema:
        yield (*trail, "unheardOf")
    for name, inner in schema.get("properties", {}).items():
        yield (*trail, name)
        yield from places(document, inner, (*trail, name))


def put(body: Any, trail: tuple[str, ...], value: Any) -> Any:
    """A copy of `body` with `value` at the end of the trail; what is missing on the way is made."""
    if not trail:
        return value
    name, rest = trail[0], trail[1:]
    if name == "0":
        return [put(body[0] if isinstance(body, list) and body else {}, rest, value)]
    whole = copy.copy(body) if isinstance(body, dict) else {}
    whole[name] = put(whole.get(name, {}), rest, value)
    return whole


def as_json(body: Any) -> str:
    """The body as JSON, the raw pieces in their places."""
    text = json.dumps(body, ensure_ascii=True)
    for name, raw in RAW.items():
        text = text.replace(f'"raw:{name}"', raw)
    return text.replace("raw:surrogate", "\\ud800")
