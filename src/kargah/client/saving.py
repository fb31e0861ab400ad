"""Files from the server: written beside their place as they come, and put there by one rename when they are whole."""

import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from kargah.client.connection import Connection, Unavailable

READ_SECONDS = 300.0


def save(connection: Connection, path: str, query: Mapping[str, Any], to: "str | os.PathLike[str]") -> Path:
    """Write what the server sends to `to`; in a folder, under the name that the server gives it. Returns the file.

    A file that was there is replaced only by a whole one. Raises `ApiError`, `ServerUnreachable`, `OSError`.
    """
    place = Path(to)
    patience = connection.patience()
    while True:
        try:
            with connection.reading(path, query, {}, READ_SECONDS) as response:
                target = place / _name(response) if place.is_dir() else place
                _write(response.iter_bytes(), target)
                return target
        except Unavailable as unavailable:
            patience.pause(unavailable.error, retry_after_seconds=unavailable.retry_after_seconds)
        except httpx.TransportError as error:
            patience.pause(connection.unreachable(error))


def _write(chunks: Iterable[bytes], target: Path) -> None:
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _name(response: httpx.Response) -> str:
    # The name is the server's: nothing of it but the last part may say where the file goes.
    found = re.search(r"filename\*=UTF-8''([^;]+)", response.headers.get("content-disposition", ""), re.IGNORECASE)
    name = re.split(r"[/\\\0]", unquote(found[1]))[-1] if found else ""
    return name if name.strip(". ") else "download"
