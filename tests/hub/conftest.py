"""A real hub on loopback, a folder to fill it with, and a place for downloads."""

import shutil
import ssl
import subprocess
import sys
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
    # Read from the environment when the library is imported: the compute program, which is offline, may have done that.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


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


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for `hub.example` and 127.0.0.1 that this process trusts."""
    if sys.platform == "darwin" or shutil.which("openssl") is None:
        pytest.skip("trust is given by SSL_CERT_FILE and a certificate made by openssl")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    names = "subjectAltName=DNS:hub.example,IP:127.0.0.1"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hub.example"),
            *("-addext", names, "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
