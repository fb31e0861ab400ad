"""A server of a few lines on a real socket, which answers what a test wrote down and keeps what it was asked."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What is sent for one request, and then the connection is closed; nothing at all is a lost answer.

    `stays` keeps the connection open until the client closes it.
    """

    parts: tuple[bytes, ...] = ()
    stays: bool = False


LOST = Answer()


def answer(status: int, body: Any = None, **headers: str) -> Answer:
    """A JSON answer; `headers` with `_` for `-`."""
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    named = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return Answer((f"HTTP/1.1 {status} said\r\n{lines}Connection: close\r\n\r\n".encode(), data))


def good(data: Any, **beside: Any) -> Answer:
    """A good answer in the envelope."""
    return answer(200, {"ok": True, "data": data, **beside})


def bad(status: int, code: str, message: str = "نشد", details: Any = None, **headers: str) -> Answer:
    """A refusal in the envelope."""
    return answer(status, {"ok": False, "error": code, "message": message, "details": details}, **headers)


def events(*parts: str | bytes, stays: bool = False) -> Answer:
    """A stream of events, sent part by part, broken off where the parts end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    texts = [part.encode() if isinstance(part, str) else part for part in parts]
    return Answer((head, *(b"%x\r\n%s\r\n" % (len(text), text) for text in texts)), stays)


@dataclass
class Scripted:
    """Answers its script in order, one request a connection; more requests than answers are closed unanswered."""

    script: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client closed a connection that stays."""

    def __post_init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def listen(self) -> None:
        """From now on connections are taken; before they are refused."""
        self._socket.listen(16)
        self._thread.start()

    def close(self) -> None:
        """Take no more."""
        if self._thread.is_alive():
            # A blocked accept does not notice that its socket is closed, but it does notice a shutdown.
            self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join(WAIT_SECONDS)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(WAIT_SECONDS)
                self._serve_one(connection)

    def _serve_one(self, connection: socket.socket) -> None:
        asked = _read(connection)
        if asked is None:
            return
        self.asked.append(asked)
        said = self.script.pop(0) if self.script else LOST
        for part in said.parts:
            connection.sendall(part)
        if said.stays:
            # A client that leaves with something unread resets the connection.
            with suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
            self.left.set()


MakeScripted = Callable[..., Scripted]


def _read(connection: socket.socket) -> Asked | None:
    held = b""
    while b"\r\n\r\n" not in held:
        part = connection.recv(65_536)
        if not part:
            return None
        held += part
    head, _, body = held.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65_536)
    method, path, _ = first.split(" ")
    return Asked(method, path, headers, body)
