"""Files from the server: written beside their place as they come, and put there by one rename when they are whole.

Where the server can send a part of a file (RFC 9110, 14), a broken connection costs nothing: what is here stays.
"""

import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from kargah.client.connection import Connection, Unavailable

READ_SECONDS = 300.0

Told = Callable[[int, int | None], None]
"""Told of bytes that are here, and of all there are where that is known."""


def save(
    connection: Connection,
    path: str,
    query: Mapping[str, Any],
    to: "str | os.PathLike[str]",
    on_progress: Told | None = None,
) -> Path:
    """Write what the server sends to `to`; in a folder, under the name that the server gives it. Returns the file.

    A file that was there is replaced only by a whole one. Raises `ApiError`, `ServerUnreachable`, `OSError`.
    """
    place = Path(to)
    part = _Part((place if place.is_dir() else place.parent) / f".{uuid.uuid4().hex}.part", on_progress)
    patience = connection.patience()
    try:
        while True:
            before = part.size_bytes
            try:
                with connection.reading(path, query, part.headers(), READ_SECONDS) as response:
                    target = place / _name(response) if place.is_dir() else place
                    part.take(response)
                os.replace(part.path, target)
                return target
            except Unavailable as unavailable:
                patience.pause(unavailable.error, retry_after_seconds=unavailable.retry_after_seconds)
            except httpx.TransportError as error:
                if part.size_bytes > before:
                    patience.reset()
                patience.pause(connection.unreachable(error))
    except BaseException:
        part.path.unlink(missing_ok=True)
        raise


class _Part:
    """What is here of a file, over any number of connections."""

    def __init__(self, path: Path, on_progress: Told | None) -> None:
        self.path = path
        self.size_bytes = 0
        self._on_progress = on_progress
        self._etag: str | None = None

    def headers(self) -> dict[str, str]:
        """Ask for what is missing, if the server said that it can send that."""
        if self._etag is None or not self.size_bytes:
            return {}
        return {"Range": f"bytes={self.size_bytes}-", "If-Range": self._etag, "Accept-Encoding": "identity"}

    def take(self, response: httpx.Response) -> None:
        """Write an answer behind what is here, or instead of it, to its end."""
        goes_on = response.status_code == 206 and _begins_at(response, self.size_bytes)
        self.size_bytes = self.size_bytes if goes_on else 0
        length = response.headers.get("content-length", "")
        total = self.size_bytes + int(length) if length.isdigit() else None
        self._etag = _resumable(response)
        with open(self.path, "ab" if goes_on else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
                self.size_bytes += len(chunk)
                if self._on_progress is not None:
                    self._on_progress(self.size_bytes, total)
            file.flush()
            os.fsync(file.fileno())


def _begins_at(response: httpx.Response, place: int) -> bool:
    return str(response.headers.get("content-range", "")).startswith(f"bytes {place}-")


def _resumable(response: httpx.Response) -> str | None:
    etag: str | None = response.headers.get("etag")
    parts = response.status_code == 206 or response.headers.get("accept-ranges") == "bytes"
    plain = response.headers.get("content-encoding", "identity") == "identity"
    return etag if parts and plain and etag and not etag.startswith("W/") else None


def _name(response: httpx.Response) -> str:
    # The name is the server's: nothing of it but the last part may say where the file goes.
    found = re.search(r"filename\*=UTF-8''([^;]+)", response.headers.get("content-disposition", ""), re.IGNORECASE)
    name = re.split(r"[/\\\0]", unquote(found[1]))[-1] if found else ""
    return name if name.strip(". ") else "download"
