"""A hub that is never the bottleneck: files by `sendfile`, faults by option, bytes counted. `python -m bench.hub ROOT`

Serves the folders below ROOT (`models/<org>/<name>`, `datasets/<org>/<name>`) with digests made at the start. It speaks
only as much of the protocol as a download asks. `GET /-/sent` says the bytes of files that left so far and how many
requests were answered.
"""

import argparse
import hashlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

HOST = "127.0.0.1"
SENT = "/-/sent"
_SEND_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Faults:
    """What the hub does to its clients."""

    drop_after_bytes: int | None = None
    """The body of an answer ends after so many bytes with its connection."""
    latency_seconds: float = 0.0
    """Waited for before each answer, as a distant hub does."""
    bytes_per_second: int | None = None
    """Speed of each body."""


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    place: Path
    size_bytes: int
    sha256: str


class _Repository:
    def __init__(self, kind: str, repo_id: str, folder: Path) -> None:
        self.kind = kind
        self.id = repo_id
        paths = sorted(place for place in folder.rglob("*") if place.is_file())
        self.entries = {entry.path: entry for entry in (_entry(folder, place) for place in paths)}
        listing = "".join(f"{entry.path} {entry.sha256}\n" for entry in self.entries.values())
        self.commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()

    def info(self) -> dict[str, Any]:
        siblings = [{"rfilename": path} for path in self.entries]
        return {"id": self.id, "modelId": self.id, "sha": self.commit, "siblings": siblings, "tags": []}

    def tree(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": entry.path,
                "size": entry.size_bytes,
                "oid": "0" * 40,
                "lfs": {"oid": entry.sha256, "size": entry.size_bytes, "pointerSize": 134},
            }
            for entry in self.entries.values()
        ]


class _Hub(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, root: Path, port: int, faults: Faults) -> None:
        super().__init__((HOST, port), _Handler)
        self.faults = faults
        self.repositories = {
            f"{kind}/{folder.parent.name}/{folder.name}": _Repository(
                kind, f"{folder.parent.name}/{folder.name}", folder
            )
            for kind in ("models", "datasets")
            for folder in sorted(root.glob(f"{kind}/*/*"))
        }
        self.guard = threading.Lock()
        self.num_sent_bytes = 0
        self.num_requests = 0

    def handle_error(self, *_: object) -> None:
        """A client that was killed is part of the measurement."""


class _Handler(BaseHTTPRequestHandler):
    server: _Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == SENT:
            with self.server.guard:
                counted = {"bytes": self.server.num_sent_bytes, "requests": self.server.num_requests}
            self._json(counted)
            return
        with self.server.guard:
            self.server.num_requests += 1
        if self.server.faults.latency_seconds:
            time.sleep(self.server.faults.latency_seconds)
        words = path.strip("/").split("/")
        if words[0] == "api" and len(words) >= 4:
            repository = self.server.repositories.get("/".join(words[1:4]))
            rest = words[4:]
            if repository is not None and rest[:1] in ([], ["revision"]):
                self._json(repository.info())
                return
            if repository is not None and rest[:1] == ["tree"]:
                self._json(repository.tree())
                return
        elif "resolve" in words:
            kind = "datasets" if words[0] == "datasets" else "models"
            words = words[1:] if kind == "datasets" else words
            repository = self.server.repositories.get("/".join([kind, *words[:2]]))
            entry = repository.entries.get("/".join(words[4:])) if repository is not None else None
            if repository is not None and entry is not None:
                self._file(repository, entry, with_body=with_body)
                return
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _file(self, repository: _Repository, entry: _Entry, *, with_body: bool) -> None:
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked.startswith("bytes=") else 0
        if start >= entry.size_bytes > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{entry.size_bytes}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("ETag", f'"{entry.sha256}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(entry.size_bytes - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{entry.size_bytes - 1}/{entry.size_bytes}")
        self.end_headers()
        self.wfile.flush()
        if with_body:
            self._body(entry, start)

    def _body(self, entry: _Entry, start: int) -> None:
        faults = self.server.faults
        end = entry.size_bytes
        if faults.drop_after_bytes is not None:
            end = min(end, start + faults.drop_after_bytes)
        step = _SEND_BYTES if faults.bytes_per_second is None else 256 * 1024
        began_at, offset = time.monotonic(), start
        with open(entry.place, "rb") as source:
            while offset < end:
                # A socket without a time-out blocks, so the system call sends until it is done or the client is gone.
                sent = os.sendfile(self.connection.fileno(), source.fileno(), offset, min(step, end - offset))
                if not sent:
                    break
                offset += sent
                with self.server.guard:
                    self.server.num_sent_bytes += sent
                if faults.bytes_per_second is not None:
                    ahead = (offset - start) / faults.bytes_per_second - (time.monotonic() - began_at)
                    time.sleep(max(0.0, ahead))
        if offset < entry.size_bytes:
            # Sent, not torn off: what left arrives.
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR)


def _entry(folder: Path, place: Path) -> _Entry:
    with open(place, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return _Entry(place.relative_to(folder).as_posix(), place, place.stat().st_size, digest)


def main() -> None:
    """Serve until a signal ends the process; the address is said on standard output."""
    parser = argparse.ArgumentParser(prog="python -m bench.hub", description="Serve folders as a fast hub with faults.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--drop-after-bytes", type=int)
    parser.add_argument("--latency-seconds", type=float, default=0.0)
    parser.add_argument("--bytes-per-second", type=int)
    asked = parser.parse_args()
    hub = _Hub(asked.root, asked.port, Faults(asked.drop_after_bytes, asked.latency_seconds, asked.bytes_per_second))
    sys.stdout.write(f"http://{HOST}:{hub.server_address[1]}\n")
    sys.stdout.flush()
    hub.serve_forever()


if __name__ == "__main__":
    main()
