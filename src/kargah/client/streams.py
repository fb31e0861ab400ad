"""Event streams (`text/event-stream`, HTML Living Standard, 9.2) that outlive broken connections and restarts.

Each event comes once: a new connection names the last one seen (`Last-Event-ID`) and the server goes on behind it. The
place moves only when an event was read whole, so one that a break cut in two comes again as a whole.
"""

import json
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from kargah.client.connection import Connection, Unavailable
from kargah.client.records import Record

# The server says something at least every 15 s.
SILENCE_SECONDS = 60.0
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0

RUN_ENDED = frozenset({"completed", "failed", "stopped"})

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Told:
    """One event: what it tells, and the place in the stream behind it."""

    id: str | None
    data: dict[str, Any]


def follow(
    connection: Connection,
    path: str,
    query: Mapping[str, Any],
    is_last: Callable[[dict[str, Any]], bool],
    after: str | None = None,
) -> Generator[Told, None, None]:
    """Events of a stream, from now on or `after` a place, up to the last. Closing the generator closes the connection.

    Raises `ApiError`, and `ServerUnreachable` when nobody answers for as long as the client's patience.
    """
    reader = _Reader(after)
    patience = connection.patience()
    while True:
        try:
            with connection.reading(path, query, reader.headers(), SILENCE_SECONDS) as response:
                if response.status_code == 204:
                    return
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise connection.unexpected(response.status_code, response.headers.get("content-type", ""))
                patience.reset()
                for told in reader.read(response.iter_bytes()):
                    yield told
                    if is_last(told.data):
                        return
        except Unavailable as unavailable:
            patience.pause(unavailable.error, retry_after_seconds=unavailable.retry_after_seconds)
        except httpx.TransportError as error:
            patience.pause(connection.unreachable(error), least_seconds=reader.retry_seconds)
        except ValueError as error:
            raise connection.unexpected(200, str(error)) from error
        else:
            # The server closed the stream before its end: it is going away, or this reader was too slow.
            time.sleep(reader.retry_seconds * random.uniform(1.0, 1.25))


def follow_as(
    kind: type[R],
    connection: Connection,
    path: str,
    query: Mapping[str, Any],
    is_last: Callable[[dict[str, Any]], bool],
    after: str | None = None,
) -> Generator[R, None, None]:
    """The same as records of `kind`, each with its `event_id`."""
    with closing(follow(connection, path, query, is_last, after)) as events:
        for told in events:
            yield connection.parsed(kind, {**told.data, "eventId": told.id})


def transfer_ended(data: dict[str, Any]) -> bool:
    """Whether an event of a download or an upload is its last."""
    return data.get("status") in ("done", "error")


def run_ended(data: dict[str, Any]) -> bool:
    """Whether an event of a run is its last: the final state, or a snapshot of a run that has ended."""
    return bool(data.get("final")) or (data.get("type") == "snapshot" and data.get("status") in RUN_ENDED)


def never(_data: dict[str, Any]) -> bool:
    """A stream without an end."""
    return False


class _Reader:
    """Reads one stream over any number of connections."""

    def __init__(self, after: str | None) -> None:
        self._last_id = after
        self.retry_seconds = RETRY_SECONDS

    def headers(self) -> dict[str, str]:
        place = {"Last-Event-ID": self._last_id} if self._last_id else {}
        return {"Accept": "text/event-stream", **place}

    def read(self, chunks: Iterable[bytes]) -> Iterator[Told]:
        """Events of one connection. Raises `ValueError` for one that is no JSON object."""
        named, data = self._last_id, list[str]()
        for line in _lines(chunks):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                self._last_id = named
                if data:
                    yield Told(named, _object("\n".join(data)))
                data.clear()
            elif field == "data":
                data.append(value)
            elif field == "id" and "\0" not in value:
                named = value
            elif field == "retry" and value.isascii() and value.isdigit():
                self.retry_seconds = min(int(value) / 1000, MAX_RETRY_SECONDS)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # Not `httpx.Response.iter_lines`: that one breaks lines at every separator that Unicode knows, also inside JSON.
    held = bytearray()
    for chunk in chunks:
        held += chunk
        if b"\n" in chunk:
            *whole, rest = held.split(b"\n")
            held = rest
            for line in whole:
                yield line.removesuffix(b"\r").decode("utf-8", "replace")


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"an event that is no object: {text[:80]}")
    return value
