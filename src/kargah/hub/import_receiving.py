"""Receiving an import: the parts of a multipart body go to the disk as they come, and nothing of them is trusted.

Fields are `modelId` or `datasetId`, `commit`, `digests` (JSON, path to digest) and files `file`: one archive, or the
files of a folder, each with its path below it as its name. They are spooled under their number.
"""

import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kargah.assets.catalog import Kind, check_id
from kargah.ground.errors import invalid
from kargah.ground.ids import new_id
from kargah.hub.import_source import MAX_FILES
from kargah.hub.import_survey import is_commit, is_digest
from kargah.hub.importing import Order, write_order

MAX_FIELD_BYTES = 4 * 1024 * 1024
WRITE_AT_ONCE_BYTES = 1024 * 1024


async def receive(chunks: AsyncIterator[bytes], content_type: str, kind: Kind, imports: Path) -> tuple[Order, Path]:
    """Take a multipart body in. Returns what it asks for, and the folder below `imports` that holds it, synced.

    Raises `ValidationFailed`, and `OSError` of a full disk, and then leaves nothing.
    """
    folder = imports / f".{new_id()}.receiving"
    receiver = _Receiver(folder, content_type, kind)
    await run_in_threadpool(folder.mkdir)
    try:
        held = bytearray()
        async for chunk in chunks:
            held += chunk
            if len(held) >= WRITE_AT_ONCE_BYTES:
                await run_in_threadpool(receiver.feed, bytes(held))
                held.clear()
        order = await run_in_threadpool(receiver.finish, bytes(held))
    except BaseException:
        receiver.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return order, folder


class _Receiver:
    """The parser's callbacks, and what they have gathered."""

    def __init__(self, folder: Path, content_type: str, kind: Kind) -> None:
        self._folder = folder
        self._kind = kind
        self._fields: dict[str, bytearray] = {}
        self._names: dict[str, None] = {}
        self._open: BinaryIO | None = None
        self._field: str | None = None
        self._header = (bytearray(), bytearray())
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
                    "on_part_end": self.close,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
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

    def finish(self, data: bytes) -> Order:
        """Take the last bytes; the import is on the disk when this returns."""
        self.feed(data)
        if not self._ended:
            raise invalid("body", "problem.multipart")
        if not self._names:
            raise invalid("file", "problem.missing")
        id_field = f"{self._kind}Id"
        wanted, commit = self._text(id_field), self._text("commit")
        if commit is not None and not is_commit(commit):
            raise invalid("commit")
        order = Order(
            kind=self._kind,
            wanted=check_id(id_field, wanted) if wanted is not None else None,
            files=tuple(self._names),
            commit=commit,
            digests=self._digests(),
        )
        write_order(self._folder, order)
        return order

    def close(self) -> None:
        """The part is over: what it wrote is on the disk."""
        if self._open is not None:
            self._open.flush()
            os.fsync(self._open.fileno())
            self._open.close()
            self._open = None

    def _digests(self) -> dict[str, str]:
        text = self._text("digests")
        if text is None:
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise invalid("digests", "problem.json") from error
        if not isinstance(value, dict):
            raise invalid("digests", "problem.object")
        if not all(is_digest(digest) for digest in value.values()):
            raise invalid("digests")
        return value

    def _text(self, name: str) -> str | None:
        """A field that was sent and is not empty."""
        try:
            return self._fields[name].decode("utf-8") or None if name in self._fields else None
        except UnicodeDecodeError as error:
            raise invalid(name, "problem.utf8") from error

    def _begin_part(self) -> None:
        self._disposition = b""
        self._field = None

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file":
            if len(self._names) == MAX_FILES:
                raise invalid("file", "problem.tooMany", bound=MAX_FILES)
            shown = options.get(b"filename", b"").decode("utf-8", "replace").removeprefix("./") or "file"
            if shown in self._names:
                raise invalid("file", "problem.twice")
            self._open = open(self._folder / str(len(self._names)), "xb")  # noqa: SIM115 - closed with its part
            self._names[shown] = None
        elif name not in (f"{self._kind}Id", "commit", "digests"):
            raise invalid(name or "body", "problem.unknown")
        elif name in self._fields:
            raise invalid(name, "problem.twice")
        else:
            self._field = name
            self._fields[name] = bytearray()

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._open is not None:
            self._open.write(memoryview(data)[start:end])
        elif self._field is not None:
            held = self._fields[self._field]
            held += data[start:end]
            if len(held) > MAX_FIELD_BYTES:
                raise invalid(self._field, "problem.tooLong", bound=MAX_FIELD_BYTES)

    def _end(self) -> None:
        self._ended = True
