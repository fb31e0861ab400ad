"""A hub of another make, written with the standard library alone: it knows no tree of files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kargah.hub.endpoint import Endpoint
from kargah.hub.job import Job, TransferSettings
from kargah.hub.tree import resolve

COMMIT = "c" * 40
FILES = {"config.json": b'{"model_type": "bert"}', "model.safetensors": bytes(range(256)) * 64, "tokenizer.json": b"{}"}


class PlainHub(BaseHTTPRequestHandler):
    """Knows a repository's facts and files, and no tree."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path in ("/api/models/lab/bert", f"/api/models/lab/bert/revision/{COMMIT}"):
            siblings = [self._facts(name, data, "blobs" in query) for name, data in FILES.items()]
            self._answer(200, json.dumps({"id": "lab/bert", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self._answer(404, b'{"error": "not found"}')

    @staticmethod
    def _facts(name: str, data: bytes, whole: bool) -> dict[str, object]:
        if not whole:
            return {"rfilename": name}
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        facts = {"rfilename": name, "size": len(data), "blobId": blob}
        return facts | ({"lfs": lfs} if name.endswith(".safetensors") else {})

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def plain_hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), PlainHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_hub_without_a_tree_is_asked_for_its_list_of_files(plain_hub: str, tmp_path) -> None:
    job = Job("lab/bert", "model", (Endpoint(plain_hub),), tmp_path, tmp_path / "t", settings=TransferSettings())
    plan = resolve(job, threading.Event(), lambda seconds, *, rate_limited: None)
    assert plan.commit == COMMIT
    assert {file.path: file.size_bytes for file in plan.files} == {name: len(data) for name, data in FILES.items()}
    digests = {file.path: file.digest for file in plan.files}
    assert digests["model.safetensors"] == f"sha256:{hashlib.sha256(FILES['model.safetensors']).hexdigest()}"
    assert digests["config.json"].startswith("git-sha1:")
