"""A tiny hub whose every answer is written down beforehand, over real sockets."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Said:
    """One answer. A body that is no text is sent as JSON."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    query: str
    headers: dict[str, str]


class ScriptedHub:
    """Runs from `__enter__` to `__exit__` on a free loopback port. A path's last answer is given again and again."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Said]] = {}
        self.requests: list[Asked] = []
        self.before: Callable[[], None] = lambda: None
        """Called within every request."""
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def say(self, path: str, *answers: Said) -> None:
        """Answer `path` so, one after the other."""
        self.answers[path] = list(answers)

    def has(self, repo_id: str, kind: str = "model", **more: Any) -> dict[str, Any]:
        """Hold a repository as the hub describes one."""
        info = {
            "id": repo_id,
            "sha": "a" * 40,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": name} for name in ("README.md", "config.json", "model.safetensors")],
            **more,
        }
        self.say(f"/api/{kind}s/{repo_id}", Said(body=info))
        return info

    def asked(self, part: str = "") -> list[Asked]:
        """Requests whose path holds `part`."""
        with self.lock:
            return [request for request in self.requests if part in request.path]

    def __enter__(self) -> "ScriptedHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: ScriptedHub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        with hub.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.requests.append(Asked(parts.path, parts.query, headers))
            left = hub.answers.get(parts.path, [Said(404, {"error": "Repository not found"}, _NOT_FOUND)])
            said = left.pop(0) if len(left) > 1 else left[0]
        hub.before()
        is_text = isinstance(said.body, str)
        body = said.body.encode() if is_text else json.dumps(said.body).encode()
        self.send_response_only(said.status)
        sent = {"Content-Type": "text/html" if is_text else "application/json", "Content-Length": str(len(body))}
        for name, value in (sent | said.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


_NOT_FOUND = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
