"""A small SOCKS server, versions 4, 4a and 5, with or without a password, that counts what it lets through."""

import socket
import socketserver
import struct
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """One connection it was asked for: `kind` is `socks4`, `socks5` with an address, or `…h` with a name."""

    kind: str
    host: str
    port: int
    credentials: tuple[str, str] | None = None


class SocksServer:
    """Runs from `__enter__` to `__exit__`. `names` says where hosts really stand; nobody else resolves them."""

    def __init__(self, names: dict[str, int] | None = None, credentials: tuple[str, str] | None = None) -> None:
        self.names = names or {}
        self.credentials = credentials
        self.passages: list[Passage] = []
        self.refused = 0
        """Connections refused for their password or their want of one."""
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.socks = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "SocksServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    socks: SocksServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news here."""


class _Handler(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        if self._exactly(1) == b"\x05":
            self._version5()
        else:
            self._version4()

    def _version5(self) -> None:
        socks, credentials = self.server.socks, None
        methods = self._exactly(self._exactly(1)[0])
        wanted = 2 if socks.credentials else 0
        if wanted not in methods:
            self._refuse(b"\x05\xff")
            return
        self.request.sendall(bytes([5, wanted]))
        if wanted:
            self._exactly(1)
            user, password = (self._exactly(self._exactly(1)[0]).decode() for _ in range(2))
            credentials = (user, password)
            if credentials != socks.credentials:
                self._refuse(b"\x01\x01")
                return
            self.request.sendall(b"\x01\x00")
        kind = self._exactly(4)[3]
        if kind == 3:
            name, host = "socks5h", self._exactly(self._exactly(1)[0]).decode()
        else:
            family, length = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            name, host = "socks5", socket.inet_ntop(family, self._exactly(length))
        (port,) = struct.unpack(">H", self._exactly(2))
        self._pass(
            Passage(name, host, port, credentials), b"\x05\x00\x00\x01" + bytes(6), b"\x05\x04\x00\x01" + bytes(6)
        )

    def _version4(self) -> None:
        _, port, number = struct.unpack(">BH4s", self._exactly(7))
        self._text()
        name, host = "socks4", socket.inet_ntoa(number)
        if host.startswith("0.0.0.") and host != "0.0.0.0":
            name, host = "socks4h", self._text()
        self._pass(Passage(name, host, port), b"\x00\x5a" + bytes(6), b"\x00\x5b" + bytes(6))

    def _pass(self, passage: Passage, granted: bytes, refused: bytes) -> None:
        with self.server.socks.lock:
            self.server.socks.passages.append(passage)
        place = ("127.0.0.1", self.server.socks.names.get(passage.host, passage.port))
        try:
            other = socket.create_connection(place, 5)
        except OSError:
            self.request.sendall(refused)
            return
        with other:
            self.request.sendall(granted)
            back = threading.Thread(target=_pump, args=(other, self.request), daemon=True)
            back.start()
            _pump(self.request, other)
            back.join()

    def _refuse(self, answer: bytes) -> None:
        with self.server.socks.lock:
            self.server.socks.refused += 1
        self.request.sendall(answer)

    def _text(self) -> str:
        content = b""
        while (byte := self._exactly(1)) != b"\0":
            content += byte
        return content.decode()

    def _exactly(self, num_bytes: int) -> bytes:
        content = b""
        while len(content) < num_bytes:
            part = self.request.recv(num_bytes - len(content))
            if not part:
                raise ConnectionError
            content += part
        return content


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while content := source.recv(65536):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
