"""A real hub on loopback, a folder to fill it with, and a place for downloads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from download import FILE, WEIGHTS, Download
from faults import FaultProxy
from workshop import RunningHub, Workshop


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no hub settings of whoever runs the tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    running = RunningHub(tmp_path_factory.mktemp("hub"))
    yield running
    running.stop()


@pytest.fixture
def hub(_server: RunningHub) -> RunningHub:
    """An empty hub."""
    _server.clear()
    return _server


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "workshop")
    yield made
    for worker in made.running:
        worker.process.kill()
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


@pytest.fixture
def proxy(hub: RunningHub) -> Iterator[FaultProxy]:
    hub.add("org/tiny", {"config.json": b'{"model_type": "bert"}', FILE: WEIGHTS})
    with FaultProxy(hub.url) as running:
        yield running


@pytest.fixture
def download(proxy: FaultProxy, workshop: Workshop) -> Download:
    return Download(workshop.job("org/tiny", proxy.url))
