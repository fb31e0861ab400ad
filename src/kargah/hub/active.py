"""One download that waits or is under way, and what can be said to it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kargah.assets.catalog import Entry
from kargah.assets.transfers import Snapshot
from kargah.hub.worker_process import WorkerProcess


@dataclass(eq=False)
class Active:
    """A download that has a thread or waits for one.

    `wish` (`pause`, `cancel`, `refuse`) is set before the worker is told, so that its end is understood.
    `arriving`: all bytes are here and verified, so it is too late to pause or cancel.
    `claimed_bytes`: the size it was found to have room for; None while nobody knows it.
    `refusal`: what it ends with although its worker could have gone on (details of `DISK_FULL`).
    """

    snapshot: Snapshot
    entry: Entry
    claimed_bytes: int | None = None
    wish: str | None = None
    arriving: bool = False
    refusal: dict[str, Any] | None = None
    worker: WorkerProcess | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    guard: threading.Lock = field(default_factory=threading.Lock)
    woken: threading.Event = field(default_factory=threading.Event)

    @property
    def transfer_id(self) -> str:
        return self.snapshot.transfer_id

    def launch(self, launch: Callable[[], WorkerProcess]) -> WorkerProcess | None:
        """Start a worker unless it is too late for one."""
        with self.guard:
            if self.wish is None:
                self.worker = launch()
            return self.worker

    def tell(self, wish: str) -> None:
        """Ask the worker to end."""
        with self.guard:
            self.wish = wish
            self.woken.set()
            if self.worker is not None:
                self.worker.end("pause" if wish == "pause" else "cancel")

    def say(self, line: str) -> None:
        """Give the worker a line that does not end it."""
        with self.guard:
            if self.worker is not None:
                self.worker.say(line)

    def rest(self, seconds: float) -> None:
        """Wait before the next worker, unless something is wished meanwhile."""
        self.woken.wait(seconds)

    def leave(self) -> None:
        """The worker has ended."""
        with self.guard:
            self.worker = None

    def terminate(self) -> None:
        """The server goes: so does the worker."""
        self.woken.set()
        with self.guard:
            if self.worker is not None:
                self.worker.terminate()
