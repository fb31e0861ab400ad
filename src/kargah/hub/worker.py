"""The worker: one download in a process of its own. `python -m kargah.hub.worker JOB.json`

The job file's folder is the download's folder: `worker.lock`, `plan.json`. Messages go to standard output, one JSON
object a line; the parent owns the terminal state, so a worker that ends without a last message has simply died.

- `{"type": "phase", "phase": "resolving" | "downloading" | "stalled" | "rateLimited" | "verifying", "until"?}`
- `{"type": "resolved", "commit", "endpoint", "totalBytes", "files", "resumedBytes", "needsConversion"}`
- `{"type": "progress", "bytesDownloaded", "totalBytes", "speed", "etaSeconds", "file"}`, every 250 ms and a last
- `{"type": "done", "commit", "target", "files", "totalBytes", "bytesDownloaded", "fetchedBytes", "needsConversion"}`
- `{"type": "error", "error": code, "params", "detail", "resumable"}`
- `{"type": "stopped", "wish": "cancel" | "pause" | "eof", "bytesDownloaded"}`

Standard input: a line `cancel` or `pause`, or its end (the server died), ends the worker within a second; parts stay.
`retry` ends every wait and every read that stands still; `limit N` is the bytes per second from now on (0 is no limit).
Exit codes: 0 done, 1 error, 3 stopped, 75 another worker holds the download.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kargah.hub.blobs import BlobStore, storage_failure
from kargah.hub.failure import Stopped, TransferFailed
from kargah.hub.fetching import fetch_all
from kargah.hub.job import Job, TransferSettings, read_job
from kargah.hub.limits import Bandwidth, HostSlots, Limits, StopSignal
from kargah.hub.plan import Plan, PlannedFile, find_plan, write_plan
from kargah.hub.progress import Meter, moment_in
from kargah.hub.selection import needs_remote_code
from kargah.hub.snapshot import build_snapshot
from kargah.hub.transfer import Endpoints, Transfer
from kargah.spec.control import EXIT_REFUSED
from kargah.spec.lock import FileLock, LockHeld

LOCK = "worker.lock"
CONFIG = "config.json"
SLOTS = "slots"

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_STOPPED = 3

_LAST_WORDS_SECONDS = 0.3
"""How long the fetching threads may take to notice a stop; what they hold is on disk already."""
_LOCK_POLL_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the job and end the process, whatever its threads are waiting for."""
    (job_file,) = sys.argv[1:] if arguments is None else arguments
    # Ctrl-C in a terminal reaches the whole process group; the server decides and closes our standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = Worker(Path(job_file)).run()
    os._exit(code)


class Worker:
    """One run of one job."""

    def __init__(self, job_file: Path) -> None:
        self._job_file = job_file
        self._folder = job_file.resolve().parent
        self._stop = StopSignal()
        self._bandwidth = Bandwidth(self._stop)
        self._endpoints: Endpoints | None = None
        self._transfers: list[Transfer] = []
        self._ended = threading.Event()
        self._wish: str | None = None
        self._code = EXIT_FAILED
        self._meter: Meter | None = None
        self._total_bytes = 0
        self._phase = ""
        self._phase_said: tuple[str, str | None] = ("", None)
        self._writing = threading.Lock()

    def run(self) -> int:
        """The exit code. Returns when the job ended or was told to stop."""
        threading.Thread(target=self._listen, daemon=True).start()
        work = threading.Thread(target=self._work, daemon=True)
        work.start()
        self._ended.wait()
        if self._wish is None:
            return self._code
        work.join(_LAST_WORDS_SECONDS)
        self._report_progress()
        done = self._meter.bytes_downloaded if self._meter is not None else None
        self._say({"type": "stopped", "wish": self._wish, "bytesDownloaded": done})
        return EXIT_STOPPED

    def waiting(self, seconds: float, *, rate_limited: bool) -> None:
        """The hub makes us wait while it is asked what it holds."""
        self._say_phase("rateLimited" if rate_limited else "resolving", moment_in(seconds) if rate_limited else None)

    def _listen(self) -> None:
        wish = "eof"
        for line in sys.stdin:
            word, _, number = line.strip().partition(" ")
            if word in ("cancel", "pause"):
                wish = word
                break
            if word == "retry":
                self._retry()
            elif word == "limit" and number.isdigit():
                self._bandwidth.limit(int(number))
        self._end(wish)

    def _retry(self) -> None:
        """Ask now: nobody waits any longer, neither by himself nor for a server."""
        if self._endpoints is not None:
            self._endpoints.reopen()
        if self._meter is not None and self._meter.hurried() == "stalled":
            for transfer in list(self._transfers):
                transfer.interrupt()
        self._stop.hurry()

    def _end(self, wish: str) -> None:
        """A stop that was asked for; too late once the job ended by itself."""
        with self._writing:
            if not self._ended.is_set():
                self._wish = wish
                self._stop.set()
                self._ended.set()

    def _work(self) -> None:
        try:
            self._do()
        except Stopped:
            return
        except TransferFailed as failure:
            self._fail(failure)
        except Exception as error:  # noqa: BLE001
            # The process's outermost edge: what nobody foresaw is reported, not lost.
            traceback.print_exc()
            self._fail(TransferFailed("INTERNAL", f"{type(error).__name__}: {error}"))

    def _do(self) -> None:
        job = read_job(self._job_file)
        self._bandwidth.begin(job.settings.bytes_per_second)
        self._say_phase("resolving")
        lock = FileLock(self._folder / LOCK)
        self._take(lock, job.settings)
        plan = self._plan(job)
        store = BlobStore(job.blobs)
        meter = Meter(plan, job.settings)
        try:
            store.prepare()
            resumed = sum(self._place(meter, store, file) for file in plan.contents)
            self._total_bytes = plan.total_bytes
            self._meter = meter
            self._say(
                {
                    "type": "resolved",
                    "commit": plan.commit,
                    "endpoint": plan.endpoint,
                    "totalBytes": plan.total_bytes,
                    "files": len(plan.files),
                    "resumedBytes": resumed,
                    "needsConversion": plan.needs_conversion,
                }
            )
            _check_space(store, plan.total_bytes - resumed, job.settings)
            self._say_phase("downloading")
            self._fetch(plan, job, store, meter)
            self._report_progress()
            self._say_phase("verifying")
            build_snapshot(plan, store, job.target)
        except OSError as error:
            raise storage_failure(error, store, meter.remaining_bytes) from error
        done = {
            "type": "done",
            "commit": plan.commit,
            "target": str(job.target),
            "files": len(plan.files),
            "totalBytes": plan.total_bytes,
            "bytesDownloaded": meter.bytes_downloaded,
            "fetchedBytes": meter.network_bytes,
            "needsConversion": plan.needs_conversion,
        }
        self._finish(EXIT_DONE, done)

    def _take(self, lock: FileLock, settings: TransferSettings) -> None:
        """Take the download's lock; an older worker that was told to die gets a while for it."""
        until = time.monotonic() + settings.lock_wait_seconds
        while True:
            try:
                lock.acquire()
                return
            except LockHeld as error:
                if time.monotonic() >= until:
                    self._code = EXIT_REFUSED
                    raise TransferFailed("DOWNLOAD_BUSY", str(error)) from error
            if self._stop.wait(_LOCK_POLL_SECONDS):
                raise Stopped

    def _plan(self, job: Job) -> Plan:
        plan = find_plan(self._folder, job)
        if plan is None:
            # The hub's client is slow to import and a worker that goes on does not need it.
            from kargah.hub.tree import resolve

            plan = resolve(job, self._stop, self.waiting)
            write_plan(self._folder, job, plan)
        return plan

    @staticmethod
    def _place(meter: Meter, store: BlobStore, file: PlannedFile) -> int:
        held = store.held_bytes(file)
        meter.place(file, held)
        return held

    def _fetch(self, plan: Plan, job: Job, store: BlobStore, meter: Meter) -> None:
        """Fetch what is missing, the config first: it decides whether the weights are wanted at all."""
        endpoints = self._endpoints = Endpoints(job.endpoints)
        slots = HostSlots(job.blobs / SLOTS, job.settings.connections_per_host, self._stop, waiting=meter.touch)
        limits = Limits(self._stop, self._bandwidth, slots)
        threading.Thread(target=self._report, args=(job.settings,), daemon=True).start()

        def new_transfer() -> Transfer:
            transfer = Transfer(plan, endpoints, store, meter, job.settings, self._stop, limits)
            self._transfers.append(transfer)
            return transfer

        waiting = sorted(plan.contents, key=lambda file: -file.size_bytes)
        config = next((file for file in plan.files if file.path == CONFIG), None)
        if plan.kind == "model" and not job.patterns:
            if config is not None:
                waiting = [file for file in waiting if file.digest != config.digest]
                fetch_all([config], 1, new_transfer, self._stop)
            _check_code(plan, store, config)
        fetch_all(waiting, job.settings.connections, new_transfer, self._stop)

    def _report(self, settings: TransferSettings) -> None:
        while not self._ended.wait(settings.report_every_seconds) and self._phase != "verifying":
            self._report_progress()

    def _report_progress(self) -> None:
        if self._meter is None:
            return
        progress = self._meter.read()
        with self._writing:
            if not self._ended.is_set() and self._phase in ("downloading", "stalled", "rateLimited"):
                self._write_phase(progress.phase, progress.until)
            if not self._ended.is_set() or self._wish is not None:
                self._write(
                    {
                        "type": "progress",
                        "bytesDownloaded": progress.bytes_downloaded,
                        "totalBytes": self._total_bytes,
                        "speed": round(progress.speed),
                        "etaSeconds": progress.eta_seconds,
                        "file": progress.file,
                    }
                )

    def _fail(self, failure: TransferFailed) -> None:
        self._report_progress()
        self._finish(
            self._code,
            {
                "type": "error",
                "error": failure.code,
                "params": failure.params,
                "detail": failure.detail,
                "resumable": failure.resumable,
            },
        )

    def _finish(self, code: int, message: dict[str, Any]) -> None:
        """Say the last message, unless a stop came before it."""
        with self._writing:
            if not self._ended.is_set():
                self._code = code
                self._write(message)
                self._ended.set()

    def _say_phase(self, phase: str, until: str | None = None) -> None:
        with self._writing:
            self._write_phase(phase, until)

    def _say(self, message: dict[str, Any]) -> None:
        with self._writing:
            self._write(message)

    def _write_phase(self, phase: str, until: str | None) -> None:
        if (phase, until) != self._phase_said:
            self._phase, self._phase_said = phase, (phase, until)
            self._write({"type": "phase", "phase": phase} | ({"until": until} if until else {}))

    def _write(self, message: dict[str, Any]) -> None:
        try:
            sys.stdout.buffer.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
            sys.stdout.buffer.flush()
        except OSError:
            # Nobody listens any more.
            self._wish = "eof"
            self._stop.set()
            self._ended.set()


def _check_space(store: BlobStore, remaining_bytes: int, settings: TransferSettings) -> None:
    """Refuse before the first byte what the disk cannot hold. Raises `TransferFailed` (`DISK_FULL`)."""
    needed = remaining_bytes + settings.disk_margin_bytes
    free = store.free_bytes()
    if remaining_bytes > 0 and free < needed:
        raise TransferFailed("DISK_FULL", f"{needed} bytes needed, {free} free", neededBytes=needed, freeBytes=free)


def _check_code(plan: Plan, store: BlobStore, config: PlannedFile | None) -> None:
    """Refuse a model that only its own code can load. Raises `TransferFailed` (`NEEDS_REMOTE_CODE`) and `OSError`."""
    value: object = None
    if config is not None:
        try:
            value = json.loads(store.blob(config.digest).read_bytes())
        except ValueError:
            value = None
    if needs_remote_code(value, has_code=plan.has_code):
        raise TransferFailed("NEEDS_REMOTE_CODE", f"{plan.repo_id} loads by its own code", repoId=plan.repo_id)


if __name__ == "__main__":
    main()
