"""Event streams (`text/event-stream`, HTML Living Standard, 9.2): unnamed events with ids, a comment in quiet times.

A stream is an asynchronous generator of `ServerEvent`; when it ends, the connection is closed. Before the generator is
asked for its first event nothing is sent, so a refusal must be raised before the response is made.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

PING_EVERY_SECONDS = 10.0
RETRY_MILLISECONDS = 2000


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream; without `id` the client's place in the stream stays where it was."""

    data: Any
    id: str | None = None

    def encode(self) -> bytes:
        """The event in wire form."""
        head = f"id: {self.id}\n".encode() if self.id is not None else b""
        return head + b"data: " + orjson.dumps(self.data) + b"\n\n"


class Drain:
    """Tells every open stream that the server is going away."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    def begin(self) -> None:
        """From now on streams end."""
        self._begun.set()

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    async def wait(self) -> None:
        """Until `begin`."""
        await self._begun.wait()


def stream(events: AsyncIterator[ServerEvent], drain: Drain) -> Response:
    """A response that sends `events`, a comment at least every 15 s, and ends with them or with the server."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_encoded(events, drain), media_type="text/event-stream", headers=headers)


def end_of_stream() -> Response:
    """The answer (204) that tells a browser's EventSource to stop reconnecting."""
    return Response(status_code=204)


def last_event_id(request: Request) -> str | None:
    """The place a reconnecting client names, by header or (for hand-made clients) by query."""
    return request.headers.get("last-event-id") or request.query_params.get("lastEventId") or None


def last_event_number(request: Request) -> int | None:
    """`last_event_id` as a number of ours; None for one that cannot be."""
    named = last_event_id(request) or ""
    return int(named) if named.isascii() and named.isdigit() and len(named) <= 18 else None


async def _encoded(events: AsyncIterator[ServerEvent], drain: Drain) -> AsyncIterator[bytes]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
    iterator = aiter(events)
    leaving = asyncio.ensure_future(drain.wait())
    coming: asyncio.Future[ServerEvent] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(iterator))
            waited: set[asyncio.Future[Any]] = {coming, leaving}
            done, _ = await asyncio.wait(waited, timeout=PING_EVERY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield event.encode()
            elif leaving in done:
                yield f": the server is restarting\nretry: {RETRY_MILLISECONDS}\n\n".encode()
                return
            else:
                yield b": still here\n\n"
    finally:
        leaving.cancel()
        if coming is not None:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
        closing = getattr(iterator, "aclose", None)
        if closing is not None:
            await closing()
