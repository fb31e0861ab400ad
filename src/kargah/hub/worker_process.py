"""The worker process of one download, as its server sees it: started, spoken to, read to its end."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from kargah.ground.settings import SECRET_VARIABLES

log = logging.getLogger(__name__)

JOB, LOG = "job.json", "worker.log"
KILL_AFTER_SECONDS = 2.0
"""A worker that was told to end and is still there is killed."""
LAST = ("done", "error", "stopped")

_SECRETS = re.compile(r"(?<=://)[^/\s@]+@|(?<=\?)[^\s'\"]+|(?<=Bearer )\S+", re.IGNORECASE)


class WorkerProcess:
    """A worker on the job in `folder/job.json`; it runs from here on. Raises `OSError` when it cannot be started."""

    def __init__(self, folder: Path, tokens: Mapping[str, str]) -> None:
        """`tokens` by the names of the variables that carry them to it."""
        self._guard = threading.Lock()
        self._killer: threading.Timer | None = None
        with open(folder / LOG, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kargah.hub.worker", str(folder / JOB)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=_environment(tokens),
                start_new_session=True,
            )

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it says, until it has ended and is buried."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:
                log.warning("not a message of a worker: %r", line[:200])
                continue
            yield message
        with self._guard:
            self._process.wait()
            if self._killer is not None:
                self._killer.cancel()
            for pipe in (self._process.stdin, self._process.stdout):
                _close(pipe)

    def say(self, line: str) -> None:
        """Give it a line; one that has ended does not hear it."""
        with self._guard:
            entrance = self._process.stdin
            if entrance is not None and not entrance.closed:
                try:
                    entrance.write(f"{line}\n".encode())
                    entrance.flush()
                except OSError:
                    log.info("a worker had ended already: %s", line)

    def end(self, wish: str) -> None:
        """Ask it to end by itself, and see to it that it does."""
        self.say(wish)
        with self._guard:
            if self._killer is None and self._process.poll() is None:
                self._killer = threading.Timer(KILL_AFTER_SECONDS, self._process.kill)
                self._killer.daemon = True
                self._killer.start()

    def terminate(self) -> None:
        """End it now."""
        self._process.terminate()


def without_secrets(detail: str, tokens: Iterable[str]) -> str:
    """A worker's own words as they may stand in a log: no token, no password, no signed address."""
    for token in tokens:
        detail = detail.replace(token, "…") if token else detail
    return _SECRETS.sub("…", detail)


def _environment(tokens: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    kept.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", PYTHONUTF8="1")
    return kept | dict(tokens)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        try:
            pipe.close()
        except OSError:
            return
