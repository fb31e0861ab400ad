"""Receiving an upload: the parts of a multipart body go to the disk as they come, and nothing of them is trusted.

Fields are `name`, `task`, `columns` (JSON) and files `file`, `file:train`, `file:validation`, `file:test`; others are
rejected. Files are spooled under their number; the names they came with are only shown.
"""

import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kargah.datasets.errors import EmptyData, TrainSplitMissing
from kargah.datasets.mapping import ROLES
from kargah.datasets.sources import SPLITS, SourceFile, Split
from kargah.ground.errors import ValidationFailed, invalid
from kargah.ground.ids import new_id
from kargah.spec.layout import read_json, write_json
from kargah.spec.run_spec import TASKS

UPLOAD = "upload.json"
UNFINISHED = ".receiving"

MAX_FILES = 64
MAX_FIELD_BYTES = 1024 * 1024
MAX_NAME_CHARS = 200
WRITE_AT_ONCE_BYTES = 1024 * 1024

_FIELDS = ("name", "task", "columns")
_FILES: dict[str, Split | None] = {"file": None, **{f"file:{split}": split for split in SPLITS}}


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """One file of an upload, spooled as `<number>`."""

    number: int
    name: str
    split: Split | None


@dataclass(frozen=True, slots=True)
class Upload:
    """What an upload asks for; kept in its folder as `upload.json`, which is written last."""

    dataset_id: str
    name: str
    task: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    files: tuple[SpooledFile, ...] = ()

    def sources(self, folder: Path) -> list[SourceFile]:
        """Its files, as they stand in `folder`."""
        return [SourceFile(folder / str(file.number), file.split, file.name) for file in self.files]


async def receive(chunks: AsyncIterator[bytes], content_type: str, uploads: Path) -> tuple[Upload, Path]:
    """Take a multipart body in. Returns what it asks for, and the folder below `uploads` that holds it, synced.

    Raises `ValidationFailed`, `EmptyData`, `TrainSplitMissing`, and `OSError` of a full disk, and then leaves nothing.
    """
    folder = uploads / f".{new_id()}{UNFINISHED}"
    receiver = _Receiver(folder, content_type)
    await run_in_threadpool(folder.mkdir)
    try:
        held = bytearray()
        async for chunk in chunks:
            held += chunk
            if len(held) >= WRITE_AT_ONCE_BYTES:
                await run_in_threadpool(receiver.feed, bytes(held))
                held.clear()
        upload = await run_in_threadpool(receiver.finish, bytes(held))
    except BaseException:
        receiver.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return upload, folder


def read_upload(folder: Path) -> Upload | None:
    """The upload in a folder, or None when it is not whole."""
    value = read_json(folder / UPLOAD)
    if value is None:
        return None
    files = tuple(SpooledFile(**file) for file in value.pop("files"))
    upload = Upload(**value, files=files)
    return upload if all(source.path.is_file() for source in upload.sources(folder)) else None


class _Receiver:
    """The parser's callbacks, and what they have gathered."""

    def __init__(self, folder: Path, content_type: str) -> None:
        self._folder = folder
        self._fields: dict[str, bytearray] = {}
        self._files: list[SpooledFile] = []
        self._open: BinaryIO | None = None
        self._field: bytearray | None = None
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = b""
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise invalid("Content-Type", "problem.multipart")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_part_data": self._take_data,
                    "on_part_end": self._end_part,
                    "on_header_field": self._take_header_name,
                    "on_header_value": self._take_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise invalid("Content-Type", "problem.multipart") from error

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise invalid("body", "problem.multipart") from error

    def finish(self, data: bytes) -> Upload:
        """Take the last bytes; the upload is on the disk when this returns."""
        self.feed(data)
        if not self._ended:
            raise invalid("body", "problem.multipart")
        upload = Upload(new_id(), self._name(), self._task(), self._columns(), tuple(self._files))
        if not self._files:
            raise invalid("file", "problem.missing")
        for source in upload.sources(self._folder):
            if not source.size_bytes:
                raise EmptyData(file=source.name)
        if all(file.split in ("validation", "test") for file in self._files):
            raise TrainSplitMissing()
        write_json(self._folder / UPLOAD, asdict(upload))
        return upload

    def close(self) -> None:
        """Let go of the file that is being written."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.close()

    def _name(self) -> str:
        name = self._text("name")
        if name is None or not name.strip():
            raise invalid("name", "problem.missing")
        if len(name) > MAX_NAME_CHARS:
            raise invalid("name", "problem.tooLong", bound=MAX_NAME_CHARS)
        return name

    def _task(self) -> str | None:
        task = self._text("task") or None
        if task is not None and task not in TASKS:
            raise invalid("task", "problem.oneOf", expected=", ".join(TASKS))
        return task

    def _columns(self) -> dict[str, str]:
        text = self._text("columns")
        return parse_columns(text) if text and text.strip() else {}

    def _text(self, name: str) -> str | None:
        if name not in self._fields:
            return None
        try:
            return self._fields[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise invalid(name, "problem.utf8") from error

    def _begin_part(self) -> None:
        self._disposition = b""
        self._field = None

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name in _FILES:
            if len(self._files) == MAX_FILES:
                raise invalid("file", "problem.tooMany", bound=MAX_FILES)
            number = len(self._files)
            shown = _shown_name(options.get(b"filename", b"").decode("utf-8", "replace"))
            self._files.append(SpooledFile(number, shown, _FILES[name]))
            self._open = open(self._folder / str(number), "xb")  # noqa: SIM115 - closed at the end of the part
        elif name not in _FIELDS:
            raise invalid(name or "body", "problem.unknown")
        elif name in self._fields:
            raise invalid(name, "problem.twice")
        else:
            self._field = self._fields[name] = bytearray()

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._open is not None:
            self._open.write(memoryview(data)[start:end])
        elif self._field is not None:
            self._field += data[start:end]
            if len(self._field) > MAX_FIELD_BYTES:
                name = next(name for name, value in self._fields.items() if value is self._field)
                raise invalid(name, "problem.tooLong", bound=MAX_FIELD_BYTES)

    def _end_part(self) -> None:
        if self._open is not None:
            self._open.flush()
            os.fsync(self._open.fileno())
            self._open.close()
            self._open = None

    def _end(self) -> None:
        self._ended = True


def parse_columns(text: str) -> dict[str, str]:
    """The `columns` of an upload: role to column name. Raises `ValidationFailed` with every problem."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise invalid("columns", "problem.json") from error
    if not isinstance(pairs, list) or not text.strip().startswith("{"):
        raise invalid("columns", "problem.object")
    problems: list[tuple[str, str, dict[str, Any]]] = []
    columns: dict[str, str] = {}
    for role, column in pairs:
        place = f"columns.{role}"
        if role not in ROLES:
            problems.append((place, "problem.unknown", {}))
        elif role in columns:
            problems.append((place, "problem.twice", {}))
        elif not isinstance(column, str):
            problems.append((place, "problem.string", {}))
        elif not column:
            problems.append((place, "problem.missing", {}))
        elif column in columns.values():
            problems.append((place, "problem.columnTwice", {"column": column}))
        else:
            columns[role] = column
    if problems:
        raise ValidationFailed(*problems)
    if "textPair" in columns and "text" not in columns:
        raise invalid("columns.text", "problem.missing")
    return columns


def _shown_name(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1][:255] or "file"
