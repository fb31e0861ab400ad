"""JSON rows: one object a line (JSON Lines), or an array of objects, read piece by piece. In UTF-8 (RFC 8259).

A key an object lacks is null. NaN, which JSON does not have but some write, is null too, and so are infinities.
"""

import codecs
import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kargah.datasets.delimited import ESCAPED_BYTE, first_bad_byte
from kargah.datasets.errors import BadEncoding, BadJson, DuplicateColumn, EmptyData, RowTooLong

MAX_ROW_BYTES = 64 * 1024 * 1024
TICK_EVERY_ROWS = 1000
PIECE_CHARS = 256 * 1024

_SPACE = " \t\r\n"


class _Twice(Exception):
    """One object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def read_json_lines(path: Path, name: str, tick: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines file; blank lines are no rows.

    Raises `EmptyData`, `BadEncoding`, `BadJson`, `RowTooLong`, `DuplicateColumn`.
    """
    decoder = _decoder()
    row = line = offset = 0
    with open(path, "rb") as file:
        while data := file.readline(MAX_ROW_BYTES):
            line += 1
            if len(data) == MAX_ROW_BYTES:
                raise RowTooLong(file=name, row=row + 1, line=line, limit=MAX_ROW_BYTES)
            start, offset = offset, offset + len(data)
            if line == 1 and data.startswith(codecs.BOM_UTF8):
                start, data = start + len(codecs.BOM_UTF8), data.removeprefix(codecs.BOM_UTF8)
            try:
                text = data.decode("utf-8").strip(_SPACE)
            except UnicodeDecodeError as error:
                raise BadEncoding(file=name, byte=start + error.start, row=row + 1, line=line) from error
            if not text:
                continue
            row += 1
            try:
                value = decoder.decode(text)
            except (ValueError, RecursionError) as error:
                raise BadJson(file=name, row=row, line=line) from error
            except _Twice as error:
                raise DuplicateColumn(file=name, column=error.key) from error
            yield _row(value, text, name, row, line)
            if row % TICK_EVERY_ROWS == 0:
                tick(offset)
    if not row:
        raise EmptyData(file=name)


def read_json_array(path: Path, name: str, tick: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Rows of a file that is one JSON array of objects, with no more of it in memory than a few rows.

    Raises `EmptyData`, `BadEncoding`, `BadJson`, `RowTooLong`, `DuplicateColumn`.
    """
    with open(path, "rb") as raw:
        pieces = _Pieces(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
        row = 0
        try:
            pieces.expect("[")
            closed = pieces.peek() == "]"
            while not closed:
                row += 1
                line = pieces.line
                value, text = pieces.value()
                yield _row(value, text, name, row, line)
                if row % TICK_EVERY_ROWS == 0:
                    tick(raw.tell())
                closed = pieces.peek() == "]"
                if not closed:
                    pieces.expect(",")
                    pieces.peek()
            pieces.expect("]")
            if pieces.peek():
                raise ValueError("something stands behind the array")
        except UnicodeDecodeError as error:
            raise _bad_encoding(path, name) from error
        except (ValueError, RecursionError) as error:
            raise BadJson(file=name, row=max(1, row), line=pieces.line) from error
        except _Twice as error:
            raise DuplicateColumn(file=name, column=error.key) from error
        except _TooLong as error:
            raise RowTooLong(file=name, row=row, line=pieces.line, limit=MAX_ROW_BYTES) from error
    if not row:
        raise EmptyData(file=name)


class _TooLong(Exception):
    pass


def _bad_encoding(path: Path, name: str) -> BadEncoding:
    """Where the first byte stands that is not UTF-8: text is read ahead of its rows, so they are counted once more."""
    row = 0
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        pieces = _Pieces(text)
        with contextlib.suppress(ValueError, RecursionError, _Twice, _TooLong):
            pieces.expect("[")
            while pieces.peek() != "]":
                row += 1
                if ESCAPED_BYTE.search(pieces.value()[1]):
                    break
                pieces.expect(",")
    return BadEncoding(file=name, byte=first_bad_byte(path), row=row, line=pieces.line)


class _Pieces:
    """A JSON text read piece by piece; `line` is the line of the place reached."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text = text
        self._held = ""
        self._at = 0
        self._decoder = _decoder()
        self.line = 1

    def peek(self) -> str:
        """The next character that is no white space, which is skipped; empty at the end."""
        while True:
            while self._at < len(self._held):
                letter = self._held[self._at]
                if letter not in _SPACE:
                    return letter
                self.line += letter == "\n"
                self._at += 1
            if not self._more(PIECE_CHARS):
                return ""

    def expect(self, letter: str) -> None:
        """Go behind `letter`. Raises `ValueError` when another one comes."""
        if self.peek() != letter:
            raise ValueError(f"expected {letter}")
        self._at += 1

    def value(self) -> tuple[Any, str]:
        """The JSON value that begins here, and its text. Raises `ValueError`."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
                # A number at the end of what is held may go on.
                if end < len(self._held) or not self._more(PIECE_CHARS):
                    break
            except ValueError:
                # Cut in the middle, most likely: read as much again, so that reading stays linear.
                held = len(self._held) - self._at
                if held >= MAX_ROW_BYTES:
                    raise _TooLong from None
                if not self._more(max(PIECE_CHARS, held)):
                    raise
        text = self._held[self._at : end]
        self.line += text.count("\n")
        self._at = end
        return value, text

    def _more(self, num_chars: int) -> bool:
        piece = self._text.read(num_chars)
        self._held = self._held[self._at :] + piece
        self._at = 0
        return bool(piece)


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_object, parse_constant=lambda _: None)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return value


def _row(value: Any, text: str, name: str, row: int, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadJson(file=name, row=row, line=line)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:  # half of a surrogate pair is no character
            raise BadJson(file=name, row=row, line=line) from error
    return value
