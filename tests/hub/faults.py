"""A proxy that stands between a worker and a hub and breaks things on purpose, counting every byte it lets through.

Works as an endpoint of its own (`proxy.url`) and as an HTTP proxy (whole addresses, whatever their host). Faults apply
to requests whose path contains `on`, the first that matches and has `times` left.
"""

import http.client
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What to do to an answer. Offsets count from the file's first byte, so they hold across resumes."""

    on: str = "/resolve/"
    times: int | None = None
    refuse: bool = False
    """Close the connection without a word."""
    status: int | None = None
    """Answer this instead of asking the hub."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers to answer, or to add to the hub's."""
    body: bytes = b""
    ignore_range: bool = False
    flip_at: int | None = None
    cut_every: int | None = None
    """Break the body after so many bytes of each answer."""
    reset: bool = False
    """Break by RST instead of FIN."""
    stall_after: int | None = None
    """Send nothing for `stall_seconds` after so many bytes of an answer, then break it."""
    stall_seconds: float = 0.0
    shorten: int = 0
    """Say and send so many bytes less than the file has, consistently."""
    surplus: bytes = b""
    """Send these after the body, without a Content-Length."""
    slow_bytes_per_second: int | None = None
    drop_headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)


class FaultProxy:
    """Runs from `__enter__` to `__exit__` on a free loopback port."""

    def __init__(self, upstream: str, *faults: Fault, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self._scheme = "https" if tls is not None else "http"
        self.faults = list(faults)
        self.requests: list[Seen] = []
        self.sent: Counter[str] = Counter()
        """Body bytes sent by decoded path."""
        self.lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def file_bytes(self, name: str = "") -> int:
        """Bytes of files sent, of those whose path ends in `name`."""
        with self.lock:
            return sum(num for path, num in self.sent.items() if "/resolve/" in path and path.endswith(name))

    def file_requests(self, name: str = "") -> list[Seen]:
        with self.lock:
            return [seen for seen in self.requests if "/resolve/" in seen.path and seen.path.endswith(name)]

    def take_fault(self, path: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.on in path and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return Fault()

    def pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        proxy = self.server.proxy
        seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        with proxy.lock:
            proxy.requests.append(seen)
        length = int(self.headers.get("Content-Length", 0))
        sent_body = self.rfile.read(length) if length else None
        fault = proxy.take_fault(seen.path)
        if fault.refuse:
            self._break(reset=True)
        elif fault.status is not None:
            self._answer(fault.status, fault.headers, fault.body)
        else:
            self._forward(fault, seen, sent_body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        """A tunnel to the upstream, whatever host was asked for."""
        proxy = self.server.proxy
        headers = {name.lower(): value for name, value in self.headers.items()}
        with proxy.lock:
            proxy.requests.append(Seen(self.command, self.path, headers))
        upstream = urlsplit(proxy.upstream)
        with socket.create_connection((upstream.hostname, upstream.port)) as other:
            self.send_response_only(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(other, self.connection), daemon=True)
            back.start()
            _pump(self.connection, other)
            back.join()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _forward(self, fault: Fault, seen: Seen, sent_body: bytes | None) -> None:
        upstream = urlsplit(self.server.proxy.upstream)
        parts = urlsplit(self.path)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        if fault.ignore_range:
            headers.pop("Range", None)
        connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port or 80, timeout=30)
        try:
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request(self.command, target, body=sent_body, headers=headers)
            answer = connection.getresponse()
            self._relay(fault, seen, answer)
        except (OSError, http.client.HTTPException):
            self._break(reset=True)
        finally:
            connection.close()

    def _relay(self, fault: Fault, seen: Seen, answer: http.client.HTTPResponse) -> None:
        content_range = answer.headers.get("Content-Range", "")
        start = int(content_range.split()[1].split("-")[0]) if answer.status == 206 else 0
        length = int(answer.headers.get("Content-Length", 0))
        self.send_response_only(answer.status)
        for name, value in self._headers_of(fault, answer.headers, start, length):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        offset = start
        left = length - fault.shorten
        end_of_answer = start + fault.cut_every if fault.cut_every is not None else None
        stall_at = start + fault.stall_after if fault.stall_after is not None else None
        while left > 0:
            step = 16 * 1024
            for limit in (end_of_answer, stall_at):
                if limit is not None:
                    step = min(step, limit - offset)
            if step <= 0:
                if stall_at is not None and offset >= stall_at:
                    self.server.proxy.pause(fault.stall_seconds)
                self._break(reset=fault.reset)
                return
            chunk = bytearray(answer.read(min(step, left)))
            if not chunk:
                break
            if fault.flip_at is not None and offset <= fault.flip_at < offset + len(chunk):
                chunk[fault.flip_at - offset] ^= 1
            # Counted before it leaves: a client that has a byte finds it counted.
            with self.server.proxy.lock:
                self.server.proxy.sent[seen.path] += len(chunk)
            self.wfile.write(chunk)
            if fault.slow_bytes_per_second is not None:
                time.sleep(len(chunk) / fault.slow_bytes_per_second)
            offset += len(chunk)
            left -= len(chunk)
        if fault.surplus:
            self.wfile.write(fault.surplus)
            self._break(reset=False)

    def _headers_of(self, fault: Fault, headers: Message, start: int, length: int) -> list[tuple[str, str]]:
        kept = [
            (name, value)
            for name, value in headers.items()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server", *fault.drop_headers)
            and not (name.lower() == "content-length" and (fault.surplus or fault.shorten))
            and not (name.lower() == "content-range" and fault.shorten)
        ]
        if fault.shorten:
            kept.append(("Content-Length", str(length - fault.shorten)))
            total = start + length - fault.shorten
            if "Content-Range" in headers:
                kept.append(("Content-Range", f"bytes {start}-{total - 1}/{total}"))
        if fault.surplus:
            kept.append(("Connection", "close"))
        return kept + list(fault.headers.items())

    def _break(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.flush()
        if not reset:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
