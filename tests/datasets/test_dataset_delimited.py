"""Delimited text: which delimiter, which quoting, and what is refused, with its place."""

from typing import Any

import pytest

from kargah.datasets.delimited import SAMPLE_BYTES, Dialect, detect_dialect
from kargah.datasets.errors import (
    BadEncoding,
    BadFile,
    BadQuote,
    BadRow,
    DuplicateColumn,
    EmptyData,
    RowTooLong,
    TooManyColumns,
)
from kargah.datasets.sources import SourceFile, read_rows
from kargah.ground.errors import KargahError


def rows(source: SourceFile) -> list[dict[str, Any]]:
    return list(read_rows(source, lambda _: None))


@pytest.mark.parametrize(
    ("name", "content", "dialect"),
    [
        ("a.csv", "text,label\nسلام، خوبی؟,خوب\n", Dialect(",")),
        ("a.csv", "text\tlabel\na, b\tx\n", Dialect("\t")),
        ("a.csv", "متن;برچسب\na, b;x\nc;y\n", Dialect(";")),
        ("a.csv", "text|label\na, b|x\n", Dialect("|")),
        ("a.csv", 'text,label\n"a,\nb",x\n', Dialect(",")),
        # A mark that opens no quoted cell: a letter.
        ("a.csv", 'text\tlabel\nhe said "no"\tx\n', Dialect("\t")),
        ("a.csv", 'text\tlabel\n"no" he said\tx\nok\ty\n', Dialect("\t", quoted=False)),
        ("a.csv", 'text\tlabel\n"never closed\tx\nok\ty\n', Dialect("\t", quoted=False)),
        # Quoted cells that hold the delimiter settle it.
        ("a.csv", 'premise\thypothesis\tlabel\n"a •\tb"\tc\te\n', Dialect("\t")),
        # Two candidates in the header: the one that every row follows.
        ("a.csv", "text, raw;label\na;x\nb, c, d;y\n", Dialect(";")),
        # One column, with commas in its texts.
        ("a.csv", "text\na, b\nc\n", Dialect("\t")),
    ],
)
def test_dialect(source: Any, name: str, content: str, dialect: Dialect) -> None:
    assert detect_dialect(source(name, content).path) == dialect


def test_a_sample_cut_inside_a_quoted_cell_still_fits(source: Any) -> None:
    long = "آ,\n" * 300_000
    file = source("a.csv", "text,label\n" + "short,x\n" * 300_000 + f'"{long}",y\n')
    assert file.size_bytes > SAMPLE_BYTES - len(long.encode())
    assert detect_dialect(file.path) == Dialect(",")
    assert rows(file)[-1] == {"text": long, "label": "y"}


def test_a_stray_mark_does_not_swallow_a_long_file(source: Any) -> None:
    file = source("a.csv", 'text\tlabel\n"stray\tx\n' + "short\tx\n" * 600_000)
    assert file.size_bytes > SAMPLE_BYTES
    assert detect_dialect(file.path) == Dialect("\t", quoted=False)


def test_values_stay_the_text_they_were(source: Any) -> None:
    text = "  می‌خواهم كيك 🍰 e\u0301 \u202b"
    file = source("a.csv", f'\ufefftext,label,n\r\n{text},01,\r\n"a ""b"" \r\n c\rd",1.0,NULL\r\n')
    assert rows(file) == [
        {"text": text, "label": "01", "n": ""},
        {"text": 'a "b" \r\n c\rd', "label": "1.0", "n": "NULL"},
    ]


def test_literal_marks_are_kept(source: Any) -> None:
    file = source("a.tsv", 'text\tlabel\n"نقل" گفت\tx\n"\ty\n')
    assert rows(file) == [{"text": '"نقل" گفت', "label": "x"}, {"text": '"', "label": "y"}]


def test_line_ends_and_blank_lines(source: Any) -> None:
    assert rows(source("a.csv", "t,l\ra,b\r\rc,d")) == [{"t": "a", "l": "b"}, {"t": "c", "l": "d"}]
    assert rows(source("a.csv", "\nt,l\n\na,b\n\n\n")) == [{"t": "a", "l": "b"}]


def test_a_cell_of_a_megabyte(source: Any) -> None:
    text = "ب" * 1_000_000
    assert rows(source("a.csv", f"text,label\n{text},x\n"))[0]["text"] == text


def test_nameless_columns_are_called_by_their_place(source: Any) -> None:
    assert list(rows(source("a.csv", ",text,,column3, \n0,a,b,c,d\n"))[0]) == [
        "column1",
        "text",
        "column3_",
        "column3",
        "column5",
    ]


@pytest.mark.parametrize(
    ("content", "error", "params"),
    [
        (b"", EmptyData, {}),
        (b"\n\n", EmptyData, {}),
        (b"t,l\na,b\nc\n", BadRow, {"row": 2, "line": 3, "found": 1, "expected": 2}),
        (b't,l\n"a\nb",c\nd,e,f\n', BadRow, {"row": 2, "line": 4, "found": 3, "expected": 2}),
        (b't,l\n"a,b\nc\n', BadQuote, {"row": 1, "line": 2}),
        (b't,l\na,b\n"x"y,b\nc,d,e\n', BadQuote, {"row": 2, "line": 3}),
        (b"t,l\na,b\nc,\xff\n", BadEncoding, {"byte": 10, "row": 2, "line": 3}),
        ("متن,برچسب\n".encode() + b"a,b\n\xc7\xe1,d\n", BadEncoding, {"byte": 22, "row": 2, "line": 3}),
        (b"t,\xe6\n", BadEncoding, {"byte": 2, "row": 0, "line": 1}),
        ("t,l\na,b\n".encode("utf-16"), BadEncoding, {"byte": 0, "row": 0, "line": 1}),
        (b"t,l\na,b\nc,\xd8", BadEncoding, {"byte": 10, "row": 2, "line": 3}),
        (b"t,l,t\na,b,c\n", DuplicateColumn, {"column": "t"}),
        (b",".join(b"c%d" % n for n in range(1001)) + b"\n", TooManyColumns, {"limit": 1000}),
        (b"PK\x03\x04rest", BadFile, {}),
        (b"\x1f\x8brest", BadFile, {}),
        (b"%PDF-1.7", BadFile, {}),
    ],
)
def test_refusals_name_the_place(source: Any, content: bytes, error: type[KargahError], params: dict[str, Any]) -> None:
    with pytest.raises(error) as raised:
        rows(source("a.csv", content))
    assert params.items() <= raised.value.params.items()
    if error is BadQuote or error is BadRow or error is BadEncoding:
        assert raised.value.params["file"] == "a.csv"


def test_a_bad_byte_far_into_a_file(source: Any) -> None:
    good = ("سطر خوب,x\n" * 200_000).encode()
    file = source("a.csv", b"t,l\n" + good + b"bad \xfe,y\n")
    with pytest.raises(BadEncoding) as raised:
        rows(file)
    assert raised.value.params == {"file": "a.csv", "byte": 4 + len(good) + 4, "row": 200_001, "line": 200_002}


def test_a_row_without_end(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kargah.datasets.delimited.MAX_ROW_CHARS", 1000)
    with pytest.raises(RowTooLong) as raised:
        rows(source("a.csv", "t,l\na,b\n" + "x" * 2000 + ",b\n"))
    assert raised.value.params["row"] == 2
