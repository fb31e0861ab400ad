"""Delimited text: CSV after RFC 4180 in UTF-8, with `,`, tab, `;` or `|` between the cells, and a header.

How a file is to be read is decided once, from its first 4 MiB, by this rule:

1. Candidates are the delimiters that stand in the header line. (`.tsv` allows the tab alone.)
2. A candidate fits when every row of the sample has as many cells as the header. Cells in quotation marks are read
   first, strictly as RFC 4180 has it: a mark opens a cell only as its first character, is doubled inside, and nothing
   but a delimiter or the end of the line follows the closing one.
3. Of those that fit, the one with most columns is taken; of equals the first of tab, comma, semicolon, bar.
4. When none fits, marks are taken for ordinary letters (files with stray marks), a line is a row, and 2 and 3 are
   tried again. When still none fits, the file is read as 2 has it with the candidate that gives most columns, and the
   row that does not fit is told.

A header without any delimiter is one column; its rows are read with the first delimiter that never splits one.
Blank lines are no rows. A column without a name is called by its place (`column3`).
"""

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kargah.datasets.columns import check_names, name_columns
from kargah.datasets.errors import BadEncoding, BadQuote, BadRow, EmptyData, RowTooLong

SAMPLE_BYTES = 4 * 1024 * 1024
MAX_ROW_CHARS = 64 * 1024 * 1024
DELIMITERS = ("\t", ",", ";", "|")
TICK_EVERY_ROWS = 1000

ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
"""What a byte that is not UTF-8 becomes under `surrogateescape`; no UTF-8 text holds one."""

# Never split a one-column file by these unless everything else stands in its texts.
_RARE = ("\x1f", "\x1e")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How cells are set apart. Without `quoted` a quotation mark is a letter."""

    delimiter: str
    quoted: bool = True


def read_delimited(
    path: Path, name: str, tick: Callable[[int], None], only: str | None = None
) -> Iterator[dict[str, str]]:
    """Rows of a delimited file; every value is text, as it stands there. `only` is the one delimiter allowed.

    Raises `EmptyData`, `BadEncoding`, `BadRow`, `BadQuote`, `RowTooLong`, `DuplicateColumn`, `TooManyColumns`.
    """
    dialect = detect_dialect(path, only)
    columns: list[str] | None = None
    row = -1
    with open(path, "rb") as raw:
        lines = _Lines(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
        reader = _reader(lines, dialect)
        line = 1
        try:
            for cells in reader:
                if cells:
                    row += 1
                    if columns is None:
                        columns = name_columns(cells)
                        check_names(columns, name)
                    elif len(cells) != len(columns):
                        raise BadRow(file=name, row=row, line=line, found=len(cells), expected=len(columns))
                    else:
                        yield dict(zip(columns, cells, strict=True))
                        if row % TICK_EVERY_ROWS == 0:
                            tick(raw.tell())
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise _bad_encoding(path, name, dialect) from error
        except _LineTooLong as error:
            raise RowTooLong(file=name, row=row + 1, line=reader.line_num + 1, limit=MAX_ROW_CHARS) from error
        except csv.Error as error:
            if "field limit" in str(error):
                raise RowTooLong(file=name, row=row + 1, line=line, limit=MAX_ROW_CHARS) from error
            raise BadQuote(file=name, row=row + 1, line=line) from error
    if columns is None:
        raise EmptyData(file=name)


def detect_dialect(path: Path, only: str | None = None) -> Dialect:
    """How a file is to be read, by the rule above. A byte that is not UTF-8 does not matter here."""
    with open(path, "rb") as file:
        data = file.read(SAMPLE_BYTES)
        whole = not file.read(1)
    if not whole:
        data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1] or data
    sample = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    header = next((line for line in io.StringIO(sample, newline="") if line.strip("\r\n")), "")
    candidates = [only] if only else [delimiter for delimiter in DELIMITERS if delimiter in header]
    for quoted in (True, False):
        found: list[tuple[int, Dialect]] = []
        for delimiter in candidates or (*DELIMITERS, *_RARE):
            num_columns = _fitting_columns(sample, Dialect(delimiter, quoted), whole)
            if num_columns:
                found.append((num_columns, Dialect(delimiter, quoted)))
        if found:
            return max(found, key=lambda fit: fit[0])[1]
    return max(
        (Dialect(delimiter) for delimiter in candidates or [","]), key=lambda dialect: _header_columns(header, dialect)
    )


class _LineTooLong(Exception):
    pass


class _Lines:
    """Lines of a text file, ends kept. A line beyond the limit is refused before it fills the memory."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text = text

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(MAX_ROW_CHARS):
            if len(line) == MAX_ROW_CHARS:
                raise _LineTooLong
            yield line


def _reader(lines: "_Lines | io.StringIO", dialect: Dialect) -> Any:
    csv.field_size_limit(MAX_ROW_CHARS)
    if dialect.quoted:
        return csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    return csv.reader(lines, delimiter=dialect.delimiter, quoting=csv.QUOTE_NONE, quotechar=None, strict=True)


def _fitting_columns(sample: str, dialect: Dialect, whole: bool) -> int:
    """The number of columns when every row of the sample has the same, else 0."""
    width = end = 0
    lines = io.StringIO(sample, newline="")
    try:
        for cells in _reader(lines, dialect):
            if cells and width and len(cells) != width:
                return 0
            width = width or len(cells)
            end = lines.tell()
    except csv.Error as error:
        # The cut may run through a cell in quotation marks; but a stray mark swallows all that follows.
        if whole or "unexpected end" not in str(error) or 2 * end < len(sample):
            return 0
    return width


def _header_columns(header: str, dialect: Dialect) -> int:
    try:
        return len(next(_reader(io.StringIO(header, newline=""), dialect), []))
    except csv.Error:
        return 0


def _bad_encoding(path: Path, name: str, dialect: Dialect) -> BadEncoding:
    """Where the first byte stands that is not UTF-8; found by reading once more, for this is the rare way."""
    row, line = -1, 1
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = _reader(_Lines(text), dialect)
        with contextlib.suppress(csv.Error, _LineTooLong):
            for cells in reader:
                row += bool(cells)
                if any(map(ESCAPED_BYTE.search, cells)):
                    break
                line = reader.line_num + 1
    return BadEncoding(file=name, byte=first_bad_byte(path), row=max(0, row), line=line)


def first_bad_byte(path: Path) -> int:
    """Offset of the first byte that does not belong to UTF-8; the file's size when there is none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = pending = 0
    with open(path, "rb") as file:
        while True:
            chunk = file.read(1024 * 1024)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return offset - pending + error.start
            if not chunk:
                return offset
            offset += len(chunk)
            pending = len(decoder.getstate()[0])
