"""Who looks on during the drill: a client on every run's stream, and one that asks whether what is shown is alive."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kargah.client import Client, KargahClientError
from kargah.spec.layout import RunDir
from kargah.spec.lock import holder_pid

ASK_EVERY_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Seen:
    """One event of a run's stream."""

    id: int
    type: str
    step: int | None
    loss: float | None
    status: str | None
    final: bool


class Follower:
    """Follows the stream of one run through everything, from a thread of its own."""

    def __init__(self, client: Client, run_id: str) -> None:
        self.events: list[Seen] = []
        self.error: str | None = None
        self._client = client
        self._run_id = run_id
        self._thread = threading.Thread(target=self._follow, name=f"follower {run_id}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the stream is over, however it ended."""
        return not self._thread.is_alive()

    def join(self, seconds: float) -> bool:
        """Wait for the stream's end. Returns whether it came."""
        self._thread.join(seconds)
        return self.ended

    def _follow(self) -> None:
        try:
            for event in self._client.runs.stream(self._run_id):
                where = int(event.event_id) if event.event_id is not None else 0
                self.events.append(Seen(where, event.type, event.step, event.loss, event.status, event.final))
        except KargahClientError as error:
            self.error = str(error)


class Watcher:
    """Asks again and again which runs the server shows as running, and whether anything holds their locks."""

    def __init__(self, asker: Client, runs: Path) -> None:
        self.longest_seconds: dict[str, float] = {}
        self.num_looks = 0
        self._asker = asker
        self._runs = runs
        self._dead_since: dict[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ending.wait(ASK_EVERY_SECONDS):
            try:
                shown = self._shown()
            except KargahClientError:
                # Nobody is shown anything: a server that comes back is measured from its first answer.
                self._dead_since.clear()
                continue
            self.num_looks += 1
            self._look(shown)

    def _shown(self) -> Sequence[str]:
        return [job.run_id for job in self._asker.runs.list(status="running")]

    def _look(self, shown: Sequence[str]) -> None:
        now = time.monotonic()
        for run_id in list(self._dead_since):
            if run_id not in shown:
                del self._dead_since[run_id]
        for run_id in shown:
            if holder_pid(RunDir(self._runs / run_id).lock) is not None:
                self._dead_since.pop(run_id, None)
                continue
            since = self._dead_since.setdefault(run_id, now)
            self.longest_seconds[run_id] = max(self.longest_seconds.get(run_id, 0.0), now - since)
