"""The values of a table's cells: which types a column can have, and what a value is as text.

A column has one type. `int`, `float` and `bool` are kept only where every value of the column is one (whole numbers
among floats become floats); a column that mixes types, or holds lists and objects, becomes text: strings stay as they
are, everything else is written as JSON. NaN is null. Text is never changed.
"""

import base64
import json
import math
import struct
from collections.abc import Set
from typing import Any, Literal

import pyarrow as pa

ColumnType = Literal["string", "int", "float", "bool"]
Value = str | int | float | bool | None

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}

# Whole numbers up to here are exact as floats.
_EXACT_FLOAT = 2**53


def kind_of(value: Any) -> str | None:
    """What a value counts as when its column's type is chosen; None for null."""
    if isinstance(value, str):
        return "string"
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) <= _EXACT_FLOAT else "long" if -(2**63) <= value < 2**63 else "json"
    return "float" if isinstance(value, float) else "json"


def type_of(kinds: Set[str]) -> ColumnType:
    """The type of a column that holds values of these kinds."""
    if kinds == {"bool"}:
        return "bool"
    if kinds and kinds <= {"int", "long"}:
        return "int"
    if kinds and kinds <= {"int", "float"}:
        return "float"
    return "string"


def as_type(value: Any, type: ColumnType) -> Value:
    """`value` as it is stored in a column of `type`."""
    if value is None or (type == "string" and isinstance(value, str)):
        return value
    if type == "string":
        return json.dumps(value, ensure_ascii=False, default=_plain)
    if type == "float":
        return float(value)
    whole: int | bool = value
    return whole


def is_blank(value: Value) -> bool:
    """Whether there is nothing to read: null, or text of white space alone."""
    return value is None or (isinstance(value, str) and not value.strip())


def text_of(value: Value) -> str:
    """A text as training sees it."""
    return value if isinstance(value, str) else str(value)


def label_text(value: Value) -> str:
    """A label as training sees it: whole floats lose their fraction, for integers with gaps are read as floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return text_of(value)


def canonical_bytes(values: list[Value]) -> bytes:
    """A row as bytes: two rows give the same bytes exactly when types and values are the same."""
    parts: list[bytes] = []
    for value in values:
        if isinstance(value, str):
            data = value.encode("utf-8")
            parts.append(b"s%d:" % len(data) + data)
        elif value is None:
            parts.append(b"n")
        elif isinstance(value, bool):
            parts.append(b"t" if value else b"u")
        elif isinstance(value, int):
            parts.append(b"i%d;" % value)
        else:
            parts.append(b"f" + struct.pack(">d", value))
    return b"".join(parts)


def without_nan(value: Any) -> Any:
    """`value`, with null in the place of NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(value: Any) -> str:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)
