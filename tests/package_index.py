"""A package index of the tests' own (simple API, PEP 503) with its moods, and wheels made on the spot."""

import base64
import contextlib
import hashlib
import io
import signal
import subprocess
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

BIG_BYTES = 300_000
_CHUNK_BYTES = 4096


def make_wheel(
    name: str,
    version: str = "1.0",
    *,
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
    payload_bytes: int = 0,
    source: str = "",
) -> tuple[str, bytes]:
    """A pure wheel with one module of its own name. Returns its file name and its bytes, the same at every call."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}\n{source}".encode(),
        f"{info}/METADATA": _metadata(name, version, requires),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    if payload_bytes:
        # Not to be compressed, and the same at every call.
        files[f"{module}/payload.bin"] = hashlib.shake_256(name.encode()).digest(payload_bytes)
    record = "".join(f"{path},sha256={_record_digest(content)},{len(content)}\n" for path, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), content)
    return f"{module}-{version}-{tag}.whl", sink.getvalue()


def _metadata(name: str, version: str, requires: Sequence[str]) -> bytes:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {requirement}" for requirement in requires), "", ""]).encode()


def _record_digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@dataclass
class Moods:
    """How the index behaves. Everything may be changed between two requests."""

    metadata: bool = True
    """Whether it serves PEP 658 metadata."""
    ranges: bool = True
    drop_every_bytes: int | None = None
    """The connection breaks after so many bytes of a wheel, but for pip's own, which an old pip cannot resume."""
    false_digests: frozenset[str] = frozenset()
    """File names whose digest it misstates."""
    digests: bool = True
    password: str | None = None
    """With one, everything wants `user:password`."""
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Answers (status, headers) to give to the next requests for a wheel, instead of the wheel."""
    login_page: bool = False
    """Wheels are answered with a page, as a captive portal does."""
    gate_bytes: int | None = None
    """After so many bytes of wheels in all, transfers hang until `gate` is set, and break then."""


class PackageIndex:
    """The index, its wheels, and a count of what it sent."""

    def __init__(self, *wheels: tuple[str, bytes]) -> None:
        self.wheels: dict[str, bytes] = {}
        self.moods = Moods()
        self.sent_bytes: dict[str, int] = {}
        """Bytes of each wheel's body that went out."""
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, file name and range of every request for a wheel."""
        self.gate = threading.Event()
        self.at_gate = threading.Event()
        """Set when a transfer waits at the gate."""
        self.guard = threading.Lock()
        self.url = ""
        self.add(*wheels)

    def add(self, *wheels: tuple[str, bytes]) -> None:
        self.wheels.update(wheels)

    @property
    def total_sent_bytes(self) -> int:
        with self.guard:
            return sum(self.sent_bytes.values())

    def forget(self) -> None:
        """Count from zero again."""
        with self.guard:
            self.sent_bytes.clear()
            self.asked.clear()


def tiny_packages() -> PackageIndex:
    """Two packages that are asked for, one of them at two versions, and two that they need."""
    return PackageIndex(
        make_wheel("tiny-torch", "1.1", requires=["tiny-maths>=1"], payload_bytes=BIG_BYTES),
        make_wheel("tiny-torch", "1.2", requires=["tiny-maths>=1"], payload_bytes=BIG_BYTES),
        make_wheel("tiny-transformers", "2.0", requires=["tiny-torch", "tiny-words; sys_platform == 'darwin'"]),
        make_wheel("tiny-maths", "1.0", payload_bytes=50_000),
        make_wheel("tiny-words", "1.0"),
    )


@contextmanager
def serving(index: PackageIndex) -> Iterator[PackageIndex]:
    """Serve an index on a free port of the loopback."""

    class Bound(_Handler):
        package_index = index

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def killed_at_the_gate(index: PackageIndex, command: list[str], folder: Path) -> None:
    """Start a command that fetches into `folder`, and kill it by SIGKILL when 400,000 bytes have come."""
    index.moods = Moods(gate_bytes=400_000)
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not index.at_gate.wait(0.1):
            assert child.poll() is None
        # What the server sent has to be on disk for no byte to come twice.
        while _bytes_in(folder) < index.total_sent_bytes:
            assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    index.gate.set()
    assert 0 < _bytes_in(folder) < sum(map(len, index.wheels.values()))


def _bytes_in(folder: Path) -> int:
    found = 0
    for path in folder.iterdir():
        # A part becomes a wheel while this looks.
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size if path.name.endswith((".whl", ".part")) else 0
    return found


class _Handler(BaseHTTPRequestHandler):
    package_index: PackageIndex
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        index, moods = self.package_index, self.package_index.moods
        if moods.password is not None:
            secret = base64.b64encode(f"user:{moods.password}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {secret}":
                self._send(401, b"", {"WWW-Authenticate": 'Basic realm="index"'}, body=body)
                return
        path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match path:
            case ["simple", project]:
                self._send(200, _page(index, project), {"Content-Type": "text/html"}, body=body)
            case ["files", name] if name.endswith(".metadata") and moods.metadata and name[:-9] in index.wheels:
                self._send(200, _metadata_of(index.wheels[name[:-9]]), {}, body=body)
            case ["files", name] if name in index.wheels:
                self._wheel(name, body=body)
            case _:
                self._send(404, b"", {}, body=body)

    def _wheel(self, name: str, *, body: bool) -> None:
        index, moods = self.package_index, self.package_index.moods
        content = index.wheels[name]
        asked = self.headers.get("Range")
        with index.guard:
            index.asked.append((self.command, name, asked))
            refusal = moods.refusals.pop(0) if body and moods.refusals else None
        if refusal is not None:
            self._send(refusal[0], b"", refusal[1], body=body)
            return
        if moods.login_page:
            self._send(200, b"<html>please log in</html>", {"Content-Type": "text/html; charset=utf-8"}, body=body)
            return
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
            "Last-Modified": formatdate(1_600_000_000, usegmt=True),
        }
        status, start, end = 200, 0, len(content)
        if moods.ranges:
            headers["Accept-Ranges"] = "bytes"
            condition = self.headers.get("If-Range")
            if asked and condition in (None, headers["ETag"]):
                first, last = asked.removeprefix("bytes=").split("-")
                start = int(first) if first else max(0, len(content) - int(last))
                end = min(end, int(last) + 1) if first and last else end
                if start >= len(content):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"}, body=body)
                    return
                status = 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body:
            self._pour(name, content[start:end])

    def _pour(self, name: str, content: bytes) -> None:
        index, moods = self.package_index, self.package_index.moods
        limit = (
            len(content)
            if moods.drop_every_bytes is None or name.startswith("pip-")
            else min(len(content), moods.drop_every_bytes)
        )
        for start in range(0, limit, _CHUNK_BYTES):
            if moods.gate_bytes is not None and index.total_sent_bytes >= moods.gate_bytes:
                index.at_gate.set()
                index.gate.wait()
                self.close_connection = True
                return
            chunk = content[start : min(limit, start + _CHUNK_BYTES)]
            try:
                self.wfile.write(chunk)
            except OSError:
                self.close_connection = True
                return
            with index.guard:
                index.sent_bytes[name] = index.sent_bytes.get(name, 0) + len(chunk)
        if limit < len(content):
            self.close_connection = True

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _page(index: PackageIndex, project: str) -> bytes:
    lines = ["<!DOCTYPE html><html><body>"]
    for name, content in sorted(index.wheels.items()):
        if name.split("-")[0].lower().replace("_", "-") != project:
            continue
        digest = hashlib.sha256(b"" if name in index.moods.false_digests else content).hexdigest()
        fragment = f"#sha256={digest}" if index.moods.digests else ""
        extra = ""
        if index.moods.metadata:
            found = hashlib.sha256(_metadata_of(content)).hexdigest()
            extra = f' data-core-metadata="sha256={found}" data-dist-info-metadata="sha256={found}"'
        lines.append(f'<a href="../../files/{escape(name)}{fragment}"{extra}>{escape(name)}</a>')
    return "\n".join([*lines, "</body></html>"]).encode()


def _metadata_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name)
