"""A whole small server for the datasets room: guard, handlers, routers, a real SQLite file, a real data directory."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from kargah.assets.catalog import load_catalog
from kargah.assets.registry import Registry
from kargah.assets.routes import build_router as build_assets_router
from kargah.assets.transfers import Transfers
from kargah.datasets.routes import build_router
from kargah.datasets.sources import SourceFile, Split
from kargah.datasets.uploads import Importer
from kargah.ground.db import Base, Database
from kargah.ground.events import EventLog
from kargah.ground.home import Home
from kargah.ground.web.guard import Guard, GuardSettings
from kargah.ground.web.handlers import install_handlers
from kargah.ground.web.sse import Drain

MAX_UPLOAD_BYTES = 8_000_000


class Server:
    """What a server of this room is made of. A second one on the same folder is that server after a restart."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.home.prepare()
        self.database = Database(f"sqlite:///{root / 'kargah.db'}")
        Base.metadata.create_all(self.database.engine)
        self.events = EventLog(self.database)
        self.registry = Registry(self.database, self.events, self.home, load_catalog())
        self.transfers = Transfers(self.database, self.events, self.registry)
        self.importer = Importer(self.registry, self.transfers)
        app = FastAPI()
        install_handlers(app)
        app.include_router(build_assets_router(self.registry, self.transfers, Drain()))
        app.include_router(build_router(self.registry, self.importer, MAX_UPLOAD_BYTES))
        self.app = app
        guarded = Guard(app, GuardSettings(max_upload_bytes=MAX_UPLOAD_BYTES))
        self.client = TestClient(
            guarded, base_url="http://127.0.0.1", headers={"Accept-Language": "en"}, raise_server_exceptions=False
        )

    def close(self) -> None:
        """Stop as a server does."""
        self.importer.stop()
        self.database.close()

    def upload(self, files: dict[str, Any] | list[tuple[str, Any]], **fields: str) -> Any:
        """POST an upload; `files` is form field to (file name, bytes)."""
        data = {"name": "نمونه", **fields}
        return self.client.post("/api/datasets/upload", data=data, files=files)

    def import_now(self, files: dict[str, Any] | list[tuple[str, Any]], **fields: str) -> str:
        """Upload, wait for the end, and expect it to be good. Returns the data set's id."""
        answer = self.upload(files, **fields)
        assert answer.status_code == 202, answer.text
        dataset_id = answer.json()["data"]["datasetId"]
        last = self.events_of(dataset_id)[-1]
        assert last["status"] == "done", last
        return str(dataset_id)

    def fail_now(self, files: dict[str, Any] | list[tuple[str, Any]], **fields: str) -> dict[str, Any]:
        """Upload, wait for the end, and expect a failure. Returns the last event."""
        answer = self.upload(files, **fields)
        assert answer.status_code == 202, answer.text
        last = self.events_of(answer.json()["data"]["datasetId"])[-1]
        assert last["status"] == "error", last
        return last

    def events_of(self, dataset_id: str) -> list[dict[str, Any]]:
        """Every event of an upload's stream until its end."""
        answer = self.client.get("/api/datasets/download/progress", params={"datasetId": dataset_id})
        assert answer.status_code == 200, answer.text
        return [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]

    def uploads_left(self) -> list[Path]:
        """What waits in the uploads' folder once the importer has put down its work."""
        self.importer.stop()
        return list(self.home.uploads.iterdir())

    def get(self, path: str, **params: Any) -> Any:
        """The `data` of a good answer."""
        answer = self.client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Makes servers on one data directory, each a restart of the one before; their importers do not work yet."""
    made: list[Server] = []

    def make() -> Server:
        made.append(Server(tmp_path / "home"))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(new_server: Callable[[], Server]) -> Iterator[Server]:
    """A server that works."""
    server = new_server()
    server.importer.start()
    with server.client:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty data directory."""
    home = Home(tmp_path / "home")
    home.prepare()
    return home


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Writes a file to import: `source("a.csv", "text,label\\n…")`."""

    def write(name: str, content: str | bytes, split: Split | None = None) -> SourceFile:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}-{name}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return SourceFile(path, split, name)

    return write
