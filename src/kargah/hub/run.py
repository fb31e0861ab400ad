"""One download from its thread's point of view: a worker after the other until one ends, then the ending that is told.

The worker only reports; this is the one place that says how a download ended.
"""

import errno
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import OperationalError

from kargah.assets.catalog import Entry
from kargah.assets.transfers import State, Transfers
from kargah.ground.errors import Internal, KargahError
from kargah.ground.home import Home
from kargah.ground.settings import Settings
from kargah.hub.active import Active
from kargah.hub.arrival import Arrival, ArrivalFailed
from kargah.hub.endpoint import Endpoint
from kargah.hub.job import Job, Pins, write_job
from kargah.hub.plan import PLAN
from kargah.hub.worker_process import JOB, LAST, WorkerProcess, without_secrets

if TYPE_CHECKING:
    from kargah.hub.downloads import Downloads

log = logging.getLogger(__name__)

MAX_DEATHS = 8
"""A worker that dies this often in a row without bringing a byte is given up."""
MAX_REST_SECONDS = 5.0
ENDING_RETRY_SECONDS = 1.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STATE_OF_PHASE = {
    "resolving": State.RESOLVING,
    "downloading": State.DOWNLOADING,
    "stalled": State.DOWNLOADING,
    "rateLimited": State.DOWNLOADING,
    "verifying": State.VERIFYING,
}

Finisher = Callable[[Entry, Path, str, Callable[[int, int], None]], dict[str, Any]]
"""Turns the files of a data set (folder, commit, report of bytes) into an asset; gives the asset's last facts."""


class DownloadRun:
    """Runs downloads, each in the thread that calls `run`."""

    def __init__(
        self, downloads: "Downloads", transfers: Transfers, home: Home, settings: Settings, arrival: Arrival
    ) -> None:
        self._downloads = downloads
        self._transfers = transfers
        self._home = home
        self._settings = settings
        self._arrival = arrival
        self.finish_dataset: Finisher | None = None

    def run(self, active: Active) -> None:
        """Bring a download to its end, its pause, or the end of this server."""
        try:
            self._fetch(active)
        except KargahError as error:
            self._fail(active, error.code, error.params, error.details)
        except OSError as error:
            log.exception("download of %s", active.entry.id)
            self._fail(active, "DISK_FULL" if error.errno in _FULL else "STORAGE_FAILED")
        except OperationalError:
            log.exception("download of %s", active.entry.id)
            self._fail(active, "STORAGE_FAILED")
        except Exception:
            # The edge of the thread: whatever happened, the download must end and the next one begin.
            log.exception("download of %s", active.entry.id)
            self._fail(active, Internal.code)

    def _fetch(self, active: Active) -> None:
        transfer_id = active.transfer_id
        self._transfers.enter(transfer_id, State.RESOLVING)
        folder = self._downloads.folder(active.entry.kind, active.entry.id)
        folder.mkdir(parents=True, exist_ok=True)
        last = self._last_words(active, folder)
        if last is None:
            return
        if last["type"] == "done" and self._downloads.may_arrive(active):
            self._arrive(active, folder, last)
        elif last["type"] == "error":
            if not last["resumable"]:
                (folder / PLAN).unlink(missing_ok=True)
            params = last["params"]
            detail = without_secrets(str(last.get("detail", "")), self._settings.secrets)
            log.warning("download of %s failed: %s: %s", active.entry.id, last["error"], detail)
            self._fail(active, last["error"], params, params if last["error"] == "DISK_FULL" else None)
        elif active.refusal is not None and active.wish == "refuse":
            self._fail(active, "DISK_FULL", {}, active.refusal)
        elif active.wish == "pause":
            self._transfers.enter(transfer_id, State.PAUSED)
        elif active.wish is not None:
            self._fail(active, "CANCELLED")

    def _last_words(self, active: Active, folder: Path) -> dict[str, Any] | None:
        """What the last worker said, or None when this server ends and the download does not."""
        deaths = 0
        while True:
            brought = self._bytes(active)
            last = self._watch(active, folder)
            if self._downloads.stopping and active.wish is None and (last is None or last["type"] == "stopped"):
                return None
            if last is not None:
                return last
            deaths = 1 if self._bytes(active) > brought else deaths + 1
            log.warning("the worker of %s died", active.entry.id)
            if deaths >= MAX_DEATHS:
                return {"type": "error", "error": "WORKER_DIED", "params": {}, "resumable": True}
            active.rest(min(MAX_REST_SECONDS, 0.1 * 2**deaths))

    def _bytes(self, active: Active) -> int:
        present = self._transfers.current(active.transfer_id)
        return present.bytes_downloaded if present else 0

    def _watch(self, active: Active, folder: Path) -> dict[str, Any] | None:
        """Run a worker to its end. Returns its last message, or None when it died without one."""
        worker = active.launch(lambda: self._launch(active.entry, folder))
        if worker is None:
            return {"type": "stopped"}
        # It may have been started with the share of a moment ago.
        self._downloads.tell_shares()
        last: dict[str, Any] | None = None
        for message in worker.messages():
            if message["type"] in LAST:
                last = message
                continue
            try:
                self._report(active, message)
            except OperationalError:
                # Figures come again; a full disk must not leave a worker that nobody listens to.
                log.warning("figures of %s could not be kept", active.entry.id, exc_info=True)
        active.leave()
        if last is None and active.wish is not None:
            return {"type": "stopped"}
        return last

    def _launch(self, entry: Entry, folder: Path) -> WorkerProcess:
        names: dict[str, str] = {}
        tokens: dict[str, str] = {}
        for number, url in enumerate(self._settings.hub_endpoint):
            token = self._settings.token_of(url)
            if token is not None:
                names[url] = f"KARGAH_WORKER_TOKEN_{number}"
                tokens[names[url]] = token
        share = self._downloads.share_bytes_per_second()
        job = Job(
            repo_id=entry.repo_id,
            kind=entry.kind,
            endpoints=tuple(Endpoint(url) for url in self._settings.hub_endpoint),
            blobs=self._home.blobs,
            target=folder / "snapshot",
            revision=entry.revision,
            pins=Pins(digests={path: file.digest for path, file in entry.digests.items()}),
            patterns=tuple(entry.files.values()),
            settings=replace(self._downloads.transfer_settings, bytes_per_second=share),
        )
        write_job(folder / JOB, job, token_envs=names)
        return WorkerProcess(folder, tokens)

    def _report(self, active: Active, message: dict[str, Any]) -> None:
        transfer_id, kind = active.transfer_id, message["type"]
        if kind == "phase":
            phase = message["phase"]
            quiet = {} if phase == "downloading" else {"speed": None, "eta_seconds": None}
            state = _STATE_OF_PHASE[phase]
            self._transfers.progress(transfer_id, state=state, phase=phase, until=message.get("until"), **quiet)
        elif kind == "resolved":
            held, total = message["resumedBytes"], message["totalBytes"]
            self._transfers.progress(transfer_id, total_bytes=total, bytes_downloaded=held, resumed_bytes=held)
            if not self._downloads.admit(active, total, held):
                active.tell("refuse")
        elif kind == "progress":
            present = self._transfers.current(transfer_id)
            moving = present is not None and present.phase == "downloading"
            self._transfers.progress(
                transfer_id,
                bytes_downloaded=message["bytesDownloaded"],
                speed=message["speed"] if moving else None,
                eta_seconds=message["etaSeconds"] if moving else None,
                file=message["file"],
            )

    def _arrive(self, active: Active, folder: Path, done: dict[str, Any]) -> None:
        transfer_id, entry = active.transfer_id, active.entry
        try:
            if entry.kind == "model":
                if done["needsConversion"]:
                    self._transfers.enter(transfer_id, State.CONVERTING)
                facts = self._arrival.model(entry, folder / "snapshot", done["commit"])
            else:
                assert self.finish_dataset is not None
                self._transfers.enter(transfer_id, State.CONVERTING)
                facts = self.finish_dataset(entry, folder / "snapshot", done["commit"], lambda _done, _total: None)
        except ArrivalFailed as failure:
            self._fail(active, failure.code, {"id": entry.id})
            return
        # Before anyone hears of the end: who then deletes the asset and begins anew works in the same folder.
        self._arrival.clear(folder)
        self._transfers.finish(transfer_id, **facts)

    def _fail(self, active: Active, code: str, params: dict[str, Any] | None = None, details: Any = None) -> None:
        """End it. On a full disk the ending itself may not fit: then again, until it does or this server goes."""
        never = threading.Event()
        while not self._downloads.stopping:
            try:
                self._transfers.fail(active.transfer_id, code, params, details)
                return
            except OperationalError:
                log.warning("the end of %s could not be kept yet: %s", active.entry.id, code, exc_info=True)
                never.wait(ENDING_RETRY_SECONDS)
