"""One download done in the test's own process, step by step, and what it downloads."""

import hashlib
import threading
from pathlib import Path

import pytest

from kargah.hub.blobs import BlobStore
from kargah.hub.failure import TransferFailed
from kargah.hub.fetching import fetch_all
from kargah.hub.job import Job
from kargah.hub.plan import Plan
from kargah.hub.progress import Meter
from kargah.hub.transfer import Endpoints, Transfer
from kargah.hub.tree import resolve

WEIGHTS = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20_000))
"""640 000 bytes without repetition, so that a byte in the wrong place is seen."""
FILE = "model.safetensors"


class Download:
    """One job, done in this process step by step."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stop = threading.Event()
        self.store = BlobStore(job.blobs)
        job.blobs.mkdir(parents=True, exist_ok=True)
        self.store.prepare()
        self.waits: list[tuple[float, bool]] = []
        self.phases: list[str] = []
        self.lengths: list[int] = []

    def plan(self) -> Plan:
        return resolve(self.job, self.stop, lambda seconds, *, rate_limited: self.waits.append((seconds, rate_limited)))

    def run(self, plan: Plan | None = None) -> None:
        plan = plan or self.plan()
        self.meter = Meter(plan, self.job.settings)
        for file in plan.contents:
            self.meter.place(file, self.store.held_bytes(file))
        endpoints = Endpoints(self.job.endpoints)
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        watch.start()
        try:
            fetch_all(
                plan.contents,
                self.job.settings.connections,
                lambda: Transfer(plan, endpoints, self.store, self.meter, self.job.settings, self.stop),
                self.stop,
            )
        finally:
            ended.set()
            watch.join()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(0.01):
            progress = self.meter.read()
            self.lengths.append(progress.bytes_downloaded)
            if self.phases[-1:] != [progress.phase]:
                self.phases.append(progress.phase)

    def content(self) -> bytes:
        """The weights as they are stored."""
        return self.store.blob("sha256:" + hashlib.sha256(WEIGHTS).hexdigest()).read_bytes()

    @property
    def part(self) -> Path:
        return self.store.part("sha256:" + hashlib.sha256(WEIGHTS).hexdigest())


def failure_of(download: Download) -> TransferFailed:
    with pytest.raises(TransferFailed) as caught:
        download.run()
    return caught.value
