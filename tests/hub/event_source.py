"""A browser's EventSource by hand (HTML Living Standard, 9.2): reconnects with its last id until told to stop."""

import contextlib
import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Wanted = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Dispatched:
    """One event that reached `onmessage`."""

    id: str
    data: dict[str, Any]


class EventSource:
    """Listens in a thread from its making. It ends by an answer that is no event stream (204, 404), or by `close`."""

    def __init__(self, url: str, *, retry_seconds: float = 0.1) -> None:
        self._parts = urlsplit(url)
        self._retry_seconds = retry_seconds
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._last_id = ""
        self.events: list[Dispatched] = []
        self.named: list[str] = []
        """The last id that each connection named."""
        self.statuses: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for(self, wanted: Wanted, timeout_seconds: float = 60.0) -> Dispatched:
        """The first event so far or to come of which `wanted(data)` holds."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._first(wanted) or not self._thread.is_alive(), timeout_seconds)
        found = self._first(wanted)
        assert found is not None, self.events[-1:]
        return found

    def wait_for_end(self, timeout_seconds: float = 60.0) -> list[Dispatched]:
        """Every event, once it has stopped reconnecting."""
        self._thread.join(timeout_seconds)
        assert not self._thread.is_alive(), self.events[-1:]
        return self.events

    def close(self) -> None:
        self._closing.set()

    def _first(self, wanted: Wanted) -> Dispatched | None:
        return next((event for event in self.events if wanted(event.data)), None)

    def _run(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                if not self._connect():
                    break
            self._closing.wait(self._retry_seconds)
        with self._changed:
            self._changed.notify_all()

    def _connect(self) -> bool:
        """One connection to its end. Returns whether to make another."""
        connection = http.client.HTTPConnection(str(self._parts.hostname), self._parts.port or 80, timeout=60)
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        try:
            connection.request("GET", f"{self._parts.path}?{self._parts.query}", headers=headers)
            answer = connection.getresponse()
            self.named.append(self._last_id)
            self.statuses.append(answer.status)
            if answer.status != 200 or answer.headers.get_content_type() != "text/event-stream":
                return False
            self._read(answer)
            return True
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> None:
        data: list[str] = []
        event_id = self._last_id
        while not self._closing.is_set() and (line := answer.readline()):
            name, _, value = line.decode("utf-8").rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "id":
                event_id = value
            elif not name and not value and line in (b"\n", b"\r\n"):
                self._last_id = event_id
                if data:
                    with self._changed:
                        self.events.append(Dispatched(event_id, json.loads("\n".join(data))))
                        self._changed.notify_all()
                data = []
