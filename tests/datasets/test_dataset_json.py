"""JSON Lines, JSON arrays and Parquet."""

import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kargah.datasets.errors import BadEncoding, BadFile, BadJson, DuplicateColumn, EmptyData
from kargah.datasets.json_rows import PIECE_CHARS
from kargah.datasets.sources import SourceFile, format_of, read_rows, sources_in
from kargah.ground.errors import KargahError

ROWS: list[dict[str, Any]] = [
    {"text": 'سلام\u200c دنیا 🌍 \r\n\t" \\ []{}', "label": 1, "p": 0.5, "ok": True, "more": {"a": [1, None]}},
    {"text": "", "label": None, "p": -1e300, "ok": False, "more": []},
    {"text": "\u2028\x85", "label": 10**30, "p": 1, "ok": None, "more": "x"},
]


def rows(source: SourceFile) -> list[dict[str, Any]]:
    return list(read_rows(source, lambda _: None))


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_both_forms_read_the_same(source: Any, ascii_only: bool, bom: str) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in ROWS)
    for indent in (None, 2):
        array = json.dumps(ROWS, ensure_ascii=ascii_only, indent=indent)
        assert rows(source("a.json", bom + array)) == ROWS
        assert rows(source("a.dat", bom + " \n" + array + "\n ")) == ROWS
    for name in ("a.jsonl", "a.ndjson", "a.json", "a.dat"):
        assert rows(source(name, bom + lines + "\n\n")) == ROWS


def test_arrays_longer_than_a_piece(source: Any) -> None:
    many = [{"text": "آ" * (PIECE_CHARS // 3), "n": n} for n in range(12)] + [
        {"text": "ب" * (3 * PIECE_CHARS), "n": 12345}
    ]
    assert rows(source("a.json", json.dumps(many, ensure_ascii=False))) == many
    numbers = [{"n": n} for n in range(60_000)]
    assert rows(source("a.json", json.dumps(numbers))) == numbers


def test_nan_is_null(source: Any) -> None:
    assert rows(source("a.jsonl", '{"a": NaN, "b": Infinity}\n')) == [{"a": None, "b": None}]


@pytest.mark.parametrize(
    ("name", "content", "error", "params"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', BadJson, {"row": 2, "line": 3}),
        ("a.jsonl", b'{"a": 1}\n[1]\n', BadJson, {"row": 2, "line": 2}),
        ("a.jsonl", b'{"a": 1}\n{"a": "\\ud800"}\n', BadJson, {"row": 2}),
        ("a.jsonl", b"[" * 100_000, BadJson, {"row": 1}),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', BadEncoding, {"byte": 16, "row": 2, "line": 2}),
        ("a.jsonl", b'{"a": 1, "a": 2}\n', DuplicateColumn, {"column": "a"}),
        ("a.jsonl", b" \n", EmptyData, {}),
        ("a.json", b"[]", EmptyData, {}),
        ("a.json", b'[{"a": 1},\n{"a": 2}', BadJson, {"row": 2, "line": 2}),
        ("a.json", b'[{"a": 1},\n\n{"a" 2}]', BadJson, {"row": 2, "line": 3}),
        ("a.json", b'[{"a": 1},\n3]', BadJson, {"row": 2, "line": 2}),
        ("a.json", b'[{"a": 1}] x', BadJson, {}),
        ("a.json", b'[{"a": 1},\n{"a": "\xd8"}]', BadEncoding, {"byte": 18, "row": 2, "line": 2}),
        ("a.json", b'[{"a": 1, "a": 2}]', DuplicateColumn, {"column": "a"}),
        ("a.json", b'{"text": ["a"],\n "label": [1]}', BadJson, {"row": 1, "line": 1}),
        ("a.parquet", b"PAR1 and nothing more", BadFile, {}),
        ("a.parquet", b"text,label\n", BadFile, {}),
    ],
)
def test_refusals(source: Any, name: str, content: bytes, error: type[KargahError], params: dict[str, Any]) -> None:
    with pytest.raises(error) as raised:
        rows(source(name, content))
    assert params.items() <= raised.value.params.items()


def test_parquet_values(tmp_path: Any) -> None:
    table = pa.table(
        {
            "text": pa.array(["می‌روم", None, ""], pa.large_string()),
            "label": pa.array(["a", "b", "a"]).dictionary_encode(),
            "n": pa.array([1, None, 2**62], pa.int64()),
            "f": pa.array([0.5, float("nan"), None], pa.float32()),
            "d": pa.array([Decimal("1.50"), None, None], pa.decimal128(5, 2)),
            "t": pa.array([0, None, 1], pa.timestamp("ns")),
            "list": pa.array([["x"], [], None]),
        }
    )
    pq.write_table(table, tmp_path / "x")
    assert rows(SourceFile(tmp_path / "x", None, "x")) == [
        {
            "text": "می‌روم",
            "label": "a",
            "n": 1,
            "f": 0.5,
            "d": "1.50",
            "t": "1970-01-01 00:00:00.000000000",
            "list": ["x"],
        },
        {"text": None, "label": "b", "n": None, "f": None, "d": None, "t": None, "list": []},
        {
            "text": "",
            "label": "a",
            "n": 2**62,
            "f": None,
            "d": None,
            "t": "1970-01-01 00:00:00.000000001",
            "list": None,
        },
    ]


def test_format_by_content_and_name(source: Any) -> None:
    assert format_of(source("a.csv", '{"a": 1}')) == "csv"
    assert format_of(source("a.tsv", "a\tb")) == "tsv"
    assert format_of(source("file", ' {"a": 1}')) == "jsonl"
    assert format_of(source("file", "a,b")) == "csv"


def test_splits_of_a_snapshot(tmp_path: Any) -> None:
    places = {
        "data/train-00000-of-00002.parquet": "train",
        "data/train-00001-of-00002.parquet": "train",
        "dev.csv": "validation",
        "test/part.jsonl": "test",
        "latest.csv": None,
        "pretraining/x_test.csv": "test",
    }
    for place in [*places, "README.md", "dataset_infos.json", ".hidden/train.csv", "labels.json"]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("a,b\n")
    found = {file.path.relative_to(tmp_path).as_posix(): file.split for file in sources_in(tmp_path)}
    assert found == places
    named = sources_in(tmp_path, {"test": "latest.csv", "train": "dev.csv"})
    assert [(file.name, file.split) for file in named] == [("dev.csv", "train"), ("latest.csv", "test")]
