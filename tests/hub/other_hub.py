"""A hub of another make: the standard library alone, every answer built by hand, with the habits other servers have."""

import gzip
import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"

Entries = list[dict[str, Any]]


@dataclass
class Habits:
    """What this hub does differently; the defaults are what most do."""

    prefix: str = ""
    tree: bool = True
    recursive: bool = True
    """Whether a tree can be listed with all its folders at once."""
    page: int | None = None
    """Entries a page of the tree."""
    next_page: Callable[[str, int], str] = lambda target, start: f'<{target}>; rel="next"'
    """The `Link` header: from the next page's address and its first entry."""
    moved_to: str | None = None
    """The repository's new id, where the redirects lead."""
    digests: bool = True
    """Whether tree and siblings say sizes and digests."""
    ranges: bool = True
    full_status: int = 200
    """The status of a whole file."""
    range_status: int = 206
    commit_header: bool = True
    chunked: bool = False
    packed: bool = False
    """Gzip everything, asked or not."""
    close: bool = False
    """Close every connection after its answer."""
    http: str = "HTTP/1.1"
    etag: str = '"{}"'
    header_case: Callable[[str], str] = str
    trailing: bytes = b""
    """Sent behind every file's body, beyond its length."""
    redirects: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Decoded path to status and `Location`."""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """Decoded path to status, headers and body."""
    entries: Callable[[Entries], Entries] = list
    """What becomes of the tree before it is told."""


class OtherHub:
    """Runs from `__enter__` to `__exit__`; `host` may be `::1`."""

    def __init__(self, repo_id: str, files: dict[str, bytes], host: str = "127.0.0.1", **habits: Any) -> None:
        self.repo_id = repo_id
        self.files = files
        self.habits = Habits(**habits)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent: Counter[str] = Counter()
        self.lock = threading.Lock()
        self._server = (_SixServer if ":" in host else _Server)((host, 0), _Handler)
        self._server.hub = self
        shown = f"[{host}]" if ":" in host else host
        self.origin = f"http://{shown}:{self._server.server_address[1]}"
        self.url = self.origin + self.habits.prefix
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "OtherHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked_for(self, part: str) -> list[dict[str, str]]:
        """Headers of requests whose address holds `part`."""
        with self.lock:
            return [headers for target, headers in self.asked if part in target]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    hub: OtherHub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news here."""


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, habits = self.server.hub, self.server.hub.habits
        with hub.lock:
            hub.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        parts = urlsplit(self.path)
        path = unquote(parts.path).removeprefix(habits.prefix)
        api = f"/api/models/{habits.moved_to or hub.repo_id}"
        if path in habits.redirects:
            status, location = habits.redirects[path]
            self._say(status, {"Location": location}, b"")
        elif path in habits.answers:
            self._say(*habits.answers[path])
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            info = {"id": hub.repo_id, "sha": COMMIT, "siblings": list(self._siblings("blobs=true" in parts.query))}
            self._json(info)
        elif habits.tree and path.startswith(f"{api}/tree/{COMMIT}"):
            self._tree(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/"), parts.query)
        elif "/resolve/" in path and path.partition("/resolve/")[2].partition("/")[2] in hub.files:
            self._file(path.partition("/resolve/")[2].partition("/")[2])
        else:
            self._say(404, {}, b'{"error": "Not Found"}')

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _siblings(self, blobs: bool) -> Iterator[dict[str, Any]]:
        for path, content in self.server.hub.files.items():
            facts = _facts(path, content) if blobs and self.server.hub.habits.digests else {}
            if "lfs" in facts:
                facts["lfs"]["sha256"] = facts["lfs"].pop("oid")
            if "oid" in facts:
                facts["blobId"] = facts.pop("oid")
            yield {"rfilename": path, **facts}

    def _tree(self, folder: str, query: str) -> None:
        habits, files = self.server.hub.habits, self.server.hub.files
        start = f"{folder}/" if folder else ""
        entries: Entries = []
        for path, content in files.items():
            inside = path.removeprefix(start)
            if not path.startswith(start):
                continue
            parents = inside.split("/")[:-1]
            for depth in range(1, len(parents) + 1 if habits.recursive else min(2, len(parents) + 1)):
                name = start + "/".join(parents[:depth])
                if name not in [entry["path"] for entry in entries]:
                    entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
            if habits.recursive or not parents:
                facts = _facts(path, content) if habits.digests else {}
                entries.append({"type": "file", "path": path, **facts})
        entries = habits.entries(entries)
        headers = {}
        if habits.page is not None:
            first = int(parse_qs(query).get("cursor", ["0"])[0])
            entries, rest = entries[first : first + habits.page], entries[first + habits.page :]
            target = f"{self.server.hub.origin}{urlsplit(self.path).path}?recursive=true&cursor={first + habits.page}"
            if rest or habits.page == 0:
                headers["Link"] = habits.next_page(target, first + habits.page)
        self._json(entries, headers)

    def _file(self, path: str) -> None:
        habits, content = self.server.hub.habits, self.server.hub.files[path]
        digest = _facts(path, content).get("lfs", {}).get("oid") or _facts(path, content)["oid"]
        headers = {"ETag": habits.etag.format(digest), "Content-Type": "application/octet-stream"}
        if habits.commit_header:
            headers["X-Repo-Commit"] = COMMIT
        asked = self.headers.get("Range")
        status, first = habits.full_status, 0
        if asked is not None and habits.ranges:
            status, first = habits.range_status, int(asked.removeprefix("bytes=").rstrip("-"))
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        with self.server.hub.lock:
            self.server.hub.sent[path] += len(content) - first if self.command == "GET" else 0
        self._say(status, headers, content[first:], habits.trailing)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value, ensure_ascii=False).encode()
        self._say(200, {"Content-Type": "application/json", **(headers or {})}, body)

    def _say(self, status: int, headers: dict[str, str], body: bytes, trailing: bytes = b"") -> None:
        habits = self.server.hub.habits
        headers = dict(headers)
        if habits.packed and body:
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        if habits.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif habits.http == "HTTP/1.1" or not habits.close:
            headers["Content-Length"] = str(len(body))
        if habits.close or habits.http == "HTTP/1.0":
            self.close_connection = True
        lines = [f"{habits.http} {status} {'' if status == 200 else 'So'}"]
        lines += [f"{habits.header_case(name)}: {_latin(value)}" for name, value in headers.items()]
        self.wfile.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        if self.command == "HEAD":
            return
        if habits.chunked:
            for start in range(0, len(body), 50_000):
                piece = body[start : start + 50_000]
                self.wfile.write(b"%x;note=1\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\nX-After: all\r\n\r\n")
        else:
            self.wfile.write(body + trailing)
        if trailing:
            self.close_connection = True


def _latin(value: str) -> str:
    return value if value.isascii() else quote(value, safe=":/?=&%<>;\"' ")


def _facts(path: str, content: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    if path.endswith(".safetensors"):
        facts["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return {**facts, "size": len(content)}
