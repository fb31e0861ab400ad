"""A server of Kargah as a process of its own, on a data directory of its own: started, ended, started again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from kargah.client import ApiError, Client, ServerUnreachable

NOBODY = "http://127.0.0.1:9"
"""An address where no hub answers: nothing here needs one."""
READY_SECONDS = 300.0
"""Also on a machine whose every core somebody else has."""
PATIENCE_SECONDS = 900.0
END_SECONDS = 60.0


class ServerBroken(Exception):
    """The server did not become ready, or did not end; the text ends with the last lines of its log."""


class Server:
    """One data directory and the server on it, with one thread for each training program.

    `settings` are `KARGAH_…` without the prefix. `client` waits for the server while it is down; `asker` does not.
    """

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.log = home.with_name(f"{home.name}.server.log")
        self._settings = settings
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        url = f"http://127.0.0.1:{self._port}"
        self.client = Client(url, language="en", patience_seconds=PATIENCE_SECONDS)
        self.asker = Client(url, language="en", patience_seconds=0.0, timeout=10.0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process, while it lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def spawn(self) -> None:
        """Start it, and do not wait for anything. Raises `OSError`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KARGAH_", "HF_"))}
        ours = {f"KARGAH_{name.upper()}": value for name, value in self._settings.items()}
        environment = {
            **kept,
            "KARGAH_HOME": str(self.home),
            "KARGAH_HUB_ENDPOINT": NOBODY,
            "OMP_NUM_THREADS": "1",
            "PYTHONUTF8": "1",
            **ours,
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "kargah.app.cli", "serve", "--port", str(self._port)]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def start(self) -> None:
        """Start it and wait until it answers. Raises `ServerBroken`."""
        self.spawn()
        self.wait_ready()

    def is_ready(self) -> bool:
        """Whether it answers now."""
        if self.pid is None:
            return False
        try:
            self.asker.get("/api/health")
        except (ApiError, ServerUnreachable):
            return False
        return True

    def wait_ready(self) -> None:
        """Wait until it answers. Raises `ServerBroken`."""
        until = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            if self.pid is None or time.monotonic() > until:
                raise ServerBroken(f"the server did not become ready\n{self._last_lines()}")
            time.sleep(0.02)

    def kill(self) -> bool:
        """End it as a crash does. Returns whether there was one."""
        process = self._process
        if process is None or self.pid is None:
            return False
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True

    def terminate(self) -> float:
        """End it as an administrator does. Returns the seconds it took. Raises `ServerBroken`."""
        process = self._process
        if process is None or self.pid is None:
            return 0.0
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise ServerBroken(f"the server did not end\n{self._last_lines()}") from error
        return time.monotonic() - begun

    def close(self) -> None:
        """End what lives, and let the connections go."""
        with contextlib.suppress(ServerBroken):
            self.terminate()
        self.client.close()
        self.asker.close()

    def _last_lines(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:] if self.log.exists() else ""
