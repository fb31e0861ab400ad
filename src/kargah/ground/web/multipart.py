"""Taking a multipart body in: its parts go to the disk as they come, and nothing of them is trusted.

What a room's body may hold is its `Receiver`'s to say; files are spooled under their number.
"""

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import BinaryIO, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kargah.ground.errors import DiskFull, TooLarge, invalid

WRITE_AT_ONCE_BYTES = 1024 * 1024

T = TypeVar("T")


def check_length(request: Request, limit: int, free_bytes: int, *, copies: int = 1) -> None:
    """Refuse by its announced length what is too large, or does not fit on the disk `copies` times.

    Raises `TooLarge` and `DiskFull`.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit():
        if int(length) > limit:
            raise TooLarge(limit=limit)
        needed = copies * int(length)
        if needed > free_bytes:
            raise DiskFull(details={"neededBytes": needed, "freeBytes": free_bytes})


async def limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raises `TooLarge` beyond `limit` bytes, whatever length was announced."""
    taken = 0
    async for chunk in request.stream():
        taken += len(chunk)
        if taken > limit:
            raise TooLarge(limit=limit)
        yield chunk


async def spool(chunks: AsyncIterator[bytes], receiver: "Receiver", finish: Callable[[bytes], T]) -> T:
    """Feed a body to `receiver`, whose folder is made here. Returns what `finish` makes of the last bytes.

    Raises what both raise, and `OSError` of a full disk, and then leaves nothing.
    """
    try:
        await run_in_threadpool(receiver.folder.mkdir)
        held = bytearray()
        async for chunk in chunks:
            held += chunk
            if len(held) >= WRITE_AT_ONCE_BYTES:
                await run_in_threadpool(receiver.feed, bytes(held))
                held.clear()
        return await run_in_threadpool(finish, bytes(held))
    except BaseException:
        receiver.close()
        shutil.rmtree(receiver.folder, ignore_errors=True)
        raise


class Receiver(ABC):
    """The parser's callbacks, and what they have gathered: short fields in memory, files in `folder`.

    Raises `ValidationFailed` for a body that is not multipart, and for unknown, repeated or too long fields.
    """

    def __init__(self, folder: Path, content_type: str, field_names: Collection[str], max_field_bytes: int) -> None:
        self.folder = folder
        self._field_names = field_names
        self._max_field_bytes = max_field_bytes
        self._fields: dict[str, bytearray] = {}
        self._field: str | None = None
        self._open: BinaryIO | None = None
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

    @abstractmethod
    def file_number(self, name: str, filename: str) -> int | None:
        """The number under which a part is spooled, or None when a part of this name is no file."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise invalid("body", "problem.multipart") from error

    def end(self, data: bytes) -> None:
        """Take the last bytes; the files are on the disk when this returns."""
        self.feed(data)
        if not self._ended:
            raise invalid("body", "problem.multipart")

    def text(self, name: str) -> str | None:
        """A field as text, or None when it was not sent."""
        if name not in self._fields:
            return None
        try:
            return self._fields[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise invalid(name, "problem.utf8") from error

    def close(self) -> None:
        """Let go of the file that is being written."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.close()

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
        number = self.file_number(name, options.get(b"filename", b"").decode("utf-8", "replace"))
        if number is not None:
            self._open = open(self.folder / str(number), "xb")  # noqa: SIM115 - closed at the end of the part
        elif name not in self._field_names:
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
            if len(held) > self._max_field_bytes:
                raise invalid(self._field, "problem.tooLong", bound=self._max_field_bytes)

    def _end_part(self) -> None:
        if self._open is not None:
            self._open.flush()
            os.fsync(self._open.fileno())
            self._open.close()
            self._open = None

    def _end(self) -> None:
        self._ended = True
