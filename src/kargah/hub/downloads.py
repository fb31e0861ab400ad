"""Downloads: the queue, the worker processes, and the one place that says how a download ended.

Each download is a worker process (`kargah.hub.worker`) watched by a thread here. The worker only reports; its parent
owns the terminal event. When the server dies the worker sees its standard input end and goes too; the next server takes
every unfinished download up again, and the worker goes on from the parts on disk.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sqlalchemy.orm import Session

from kargah.assets.catalog import Catalog, Entry, Kind
from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.assets.transfers import Snapshot, State, Transfers
from kargah.ground.db import Database
from kargah.ground.errors import DiskFull, Internal, InvalidState, KargahError, Offline
from kargah.ground.home import Home, folder_name
from kargah.ground.settings import Settings
from kargah.hub.arrival import Arrival, ArrivalFailed
from kargah.hub.endpoint import Endpoint
from kargah.hub.job import Job, Pins, TransferSettings, write_job
from kargah.hub.plan import PLAN

log = logging.getLogger(__name__)

ORIGIN = "hub"
PARALLEL = 2
MAX_DEATHS = 3
"""A worker that dies this often in a row without bringing a byte is given up."""
TOKEN_ENV = "KARGAH_HUB_TOKEN"
_STATE_OF_PHASE = {
    "resolving": State.RESOLVING,
    "downloading": State.DOWNLOADING,
    "stalled": State.DOWNLOADING,
    "rateLimited": State.DOWNLOADING,
    "verifying": State.VERIFYING,
}

Finisher = Callable[[Entry, Path, str, Callable[[int, int], None]], dict[str, Any]]
"""Turns the files of a data set (folder, commit, report of bytes) into an asset; gives the asset's last facts."""


@dataclass
class _Active:
    """A download that has a thread. `wish` is set before the worker is told, so that its end is understood.

    `arriving`: all bytes are here and verified, so it is too late to pause or cancel.
    """

    snapshot: Snapshot
    entry: Entry
    wish: str | None = None
    arriving: bool = False
    process: "subprocess.Popen[bytes] | None" = None
    guard: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, wish: str) -> None:
        """Ask the worker to end."""
        with self.guard:
            self.wish = wish
            if self.process is not None and self.process.stdin is not None and not self.process.stdin.closed:
                try:
                    self.process.stdin.write(f"{wish}\n".encode())
                    self.process.stdin.flush()
                except OSError:
                    log.info("the worker of %s had ended already", self.entry.id)


class Downloads:
    """The downloads of this server."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        transfers: Transfers,
        catalog: Catalog,
        home: Home,
        settings: Settings,
        transfer_settings: TransferSettings | None = None,
    ) -> None:
        self._database = database
        self._registry = registry
        self.transfers = transfers
        self.catalog = catalog
        self._home = home
        self._settings = settings
        self._transfer_settings = transfer_settings or TransferSettings()
        self._guard = threading.RLock()
        self._active: dict[str, _Active] = {}
        self._queue: list[_Active] = []
        self._ending = False
        self._arrival = Arrival(home)
        self._finish_dataset: Finisher | None = None
        for kind in ("model", "dataset"):
            registry.on_remove(kind, self._forget)

    def on_dataset(self, finisher: Finisher) -> None:
        """How the files of a data set become an asset; the rooms beside this one cannot be asked directly."""
        self._finish_dataset = finisher

    def resume_all(self) -> None:
        """Take up what a former server left unfinished."""
        for snapshot in self.transfers.unfinished(ORIGIN):
            entry = self.catalog.find(_kind(snapshot.kind), snapshot.asset_id)
            self.transfers.adopt(snapshot.transfer_id)
            if entry is None:
                code = "MODEL_NOT_ALLOWED" if snapshot.kind == "model" else "DATASET_NOT_ALLOWED"
                self.transfers.fail(snapshot.transfer_id, code, {"id": snapshot.asset_id})
            elif snapshot.state is not State.PAUSED and not self._settings.offline:
                self._enqueue(_Active(snapshot, entry))

    def stop(self) -> None:
        """Let every worker go; their downloads stay unfinished and go on with the next server."""
        with self._guard:
            self._ending = True
            active = list(self._active.values())
            self._queue.clear()
        for one in active:
            with one.guard:
                if one.process is not None:
                    one.process.terminate()

    def start(self, kind: Kind, any_id: str) -> tuple[Snapshot | None, bool]:
        """Begin to fetch an approved asset. Returns its transfer and whether a new one began.

        Raises `ModelNotAllowed`, `DatasetNotAllowed`, `Offline`, `DiskFull`.
        """
        entry = self.catalog.require(kind, any_id)
        with self._guard, self._database.write() as session:
            row = self._registry.find(session, kind, entry.id)
            if row is not None and row.status == "ready":
                return self.transfers.latest(kind, entry.id), False
            if row is not None and row.status == "downloading":
                present = self.transfers.latest(kind, entry.id)
                if present is not None and not present.ended:
                    return present, False
            if self._settings.offline:
                raise Offline()
            self._check_space(entry)
            asset = {"name": entry.name, "source": "HuggingFace", "size_bytes": entry.size_bytes}
            snapshot = self.transfers.begin(session, kind, entry.id, ORIGIN, asset)
        self._enqueue(_Active(snapshot, entry))
        return snapshot, True

    def pause(self, kind: Kind, any_id: str) -> Snapshot:
        """Let go of the network and keep the bytes. Raises `InvalidState` when there is nothing to let go of."""
        with self._guard:
            snapshot, active = self._under_way(kind, any_id)
            if snapshot.state is State.PAUSED:
                return snapshot
            self._check_not_arriving(snapshot, active)
            if active is None or active in self._queue:
                self._drop(active)
                self.transfers.enter(snapshot.transfer_id, State.PAUSED)
            else:
                active.tell("pause")
        return self.transfers.get(snapshot.transfer_id)

    def resume(self, kind: Kind, any_id: str) -> Snapshot:
        """Go on with a paused download. Raises `InvalidState`, `Offline`."""
        with self._guard:
            snapshot, _ = self._under_way(kind, any_id)
            if snapshot.state is not State.PAUSED:
                raise InvalidState(details={"state": snapshot.state.value})
            if self._settings.offline:
                raise Offline()
            self.transfers.enter(snapshot.transfer_id, State.QUEUED)
            self._enqueue(_Active(snapshot, self.catalog.require(kind, any_id)))
        return self.transfers.get(snapshot.transfer_id)

    def cancel(self, kind: Kind, any_id: str) -> Snapshot:
        """End a download; its bytes stay for a later try. Raises `InvalidState`, also once all bytes are here."""
        with self._guard:
            snapshot, active = self._under_way(kind, any_id)
            self._check_not_arriving(snapshot, active)
            if active is None or active in self._queue:
                self._drop(active)
                self.transfers.fail(snapshot.transfer_id, "CANCELLED")
            else:
                active.tell("cancel")
        return self.transfers.get(snapshot.transfer_id)

    def _under_way(self, kind: Kind, any_id: str) -> tuple[Snapshot, _Active | None]:
        entry = self.catalog.require(kind, any_id)
        snapshot = self.transfers.latest(kind, entry.id)
        if snapshot is None or snapshot.ended:
            raise InvalidState(details={"state": snapshot.state.value if snapshot else "none"})
        waiting = next((one for one in self._queue if one.snapshot.transfer_id == snapshot.transfer_id), None)
        return snapshot, self._active.get(snapshot.transfer_id) or waiting

    @staticmethod
    def _check_not_arriving(snapshot: Snapshot, active: _Active | None) -> None:
        if active is not None and active.arriving:
            raise InvalidState(details={"state": snapshot.state.value})

    def _drop(self, active: _Active | None) -> None:
        if active is not None and active in self._queue:
            self._queue.remove(active)

    def _forget(self, _session: Session, row: AssetRow) -> None:
        """An asset is being deleted: what an ended download of it left behind goes too, and its parts with it."""
        shutil.rmtree(self._folder(row.kind, row.id), ignore_errors=True)

    def _folder(self, kind: str, asset_id: str) -> Path:
        return self._home.downloads / f"{kind}--{folder_name(asset_id)}"

    def _check_space(self, entry: Entry) -> None:
        free = self._home.free_bytes()
        if entry.size_bytes is not None and entry.size_bytes > free:
            raise DiskFull(details={"neededBytes": entry.size_bytes, "freeBytes": free})

    def _enqueue(self, active: _Active) -> None:
        with self._guard:
            self._queue.append(active)
        self._fill()

    def _fill(self) -> None:
        with self._guard:
            while self._queue and len(self._active) < PARALLEL and not self._ending:
                active = self._queue.pop(0)
                self._active[active.snapshot.transfer_id] = active
                threading.Thread(
                    target=self._run, args=(active,), name=f"download {active.entry.id}", daemon=True
                ).start()

    def _run(self, active: _Active) -> None:
        try:
            self._fetch(active)
        except KargahError as error:
            self.transfers.fail(active.snapshot.transfer_id, error.code, error.params, error.details)
        except OSError as error:
            log.exception("download of %s", active.entry.id)
            code = "DISK_FULL" if error.errno == 28 else "STORAGE_FAILED"
            self.transfers.fail(active.snapshot.transfer_id, code)
        except Exception:
            # The edge of the thread: whatever happened, the download must end and the next one begin.
            log.exception("download of %s", active.entry.id)
            self.transfers.fail(active.snapshot.transfer_id, Internal.code)
        finally:
            with self._guard:
                # A pause lets a resume in before this thread has ended; what is here then is the resumed one.
                if self._active.get(active.snapshot.transfer_id) is active:
                    del self._active[active.snapshot.transfer_id]
            self._fill()

    def _fetch(self, active: _Active) -> None:
        transfer_id = active.snapshot.transfer_id
        self.transfers.enter(transfer_id, State.RESOLVING)
        folder = self._folder(active.entry.kind, active.entry.id)
        folder.mkdir(parents=True, exist_ok=True)
        deaths = 0
        while True:
            brought = self._bytes(transfer_id)
            last = self._watch(active, folder)
            if self._ending and active.wish is None and (last is None or last["type"] == "stopped"):
                return
            if last is not None:
                break
            deaths = 1 if self._bytes(transfer_id) > brought else deaths + 1
            log.warning("the worker of %s died", active.entry.id)
            if deaths >= MAX_DEATHS:
                last = {"type": "error", "error": "WORKER_DIED", "params": {}, "resumable": True}
                break
        if last["type"] == "done" and self._may_arrive(active):
            self._arrive(active, folder, last)
        elif last["type"] == "error":
            if not last["resumable"]:
                (folder / PLAN).unlink(missing_ok=True)
            params = last["params"]
            self.transfers.fail(transfer_id, last["error"], params, params if last["error"] == "DISK_FULL" else None)
        elif active.wish == "pause":
            self.transfers.enter(transfer_id, State.PAUSED)
        elif active.wish == "cancel":
            self.transfers.fail(transfer_id, "CANCELLED")

    def _may_arrive(self, active: _Active) -> bool:
        with self._guard:
            active.arriving = active.wish != "cancel"
            return active.arriving

    def _bytes(self, transfer_id: str) -> int:
        present = self.transfers.current(transfer_id)
        return present.bytes_downloaded if present else 0

    def _watch(self, active: _Active, folder: Path) -> dict[str, Any] | None:
        """Run a worker to its end. Returns its last message, or None when it died without one."""
        with active.guard:
            if active.wish is not None:
                return {"type": "stopped", "wish": active.wish}
            active.process = self._spawn(active.entry, folder)
        process = active.process
        last: dict[str, Any] | None = None
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:
                log.warning("not a message of a worker: %r", line[:200])
                continue
            if message["type"] in ("done", "error", "stopped"):
                last = message
            else:
                self._report(active.snapshot.transfer_id, message)
        with active.guard:
            process.wait()
            active.process = None
            for pipe in (process.stdin, process.stdout):
                _close(pipe)
        if last is None and active.wish is not None:
            return {"type": "stopped", "wish": active.wish}
        return last

    def _report(self, transfer_id: str, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "phase":
            phase = message["phase"]
            quiet = {} if phase == "downloading" else {"speed": None, "eta_seconds": None}
            state = _STATE_OF_PHASE[phase]
            self.transfers.progress(transfer_id, state=state, phase=phase, until=message.get("until"), **quiet)
        elif kind == "resolved":
            held = message["resumedBytes"]
            self.transfers.progress(
                transfer_id, total_bytes=message["totalBytes"], bytes_downloaded=held, resumed_bytes=held
            )
        elif kind == "progress":
            present = self.transfers.current(transfer_id)
            moving = present is not None and present.phase == "downloading"
            self.transfers.progress(
                transfer_id,
                bytes_downloaded=message["bytesDownloaded"],
                speed=message["speed"] if moving else None,
                eta_seconds=message["etaSeconds"] if moving else None,
                file=message["file"],
            )

    def _spawn(self, entry: Entry, folder: Path) -> "subprocess.Popen[bytes]":
        endpoints = [Endpoint(url) for url in self._settings.hub_endpoint]
        token = self._settings.hub_token
        tokens = {endpoints[0].url: TOKEN_ENV} if token is not None else {}
        job = Job(
            repo_id=entry.repo_id,
            kind=entry.kind,
            endpoints=tuple(endpoints),
            blobs=self._home.blobs,
            target=folder / "snapshot",
            revision=entry.revision,
            pins=Pins(digests={path: file.digest for path, file in entry.digests.items()}),
            patterns=tuple(entry.files.values()),
            settings=self._transfer_settings,
        )
        write_job(folder / "job.json", job, token_envs=tokens)
        with open(folder / "worker.log", "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "kargah.hub.worker", str(folder / "job.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=_environment(token.get_secret_value() if token else None),
                start_new_session=True,
            )

    def _arrive(self, active: _Active, folder: Path, done: dict[str, Any]) -> None:
        transfer_id, entry = active.snapshot.transfer_id, active.entry
        try:
            if entry.kind == "model":
                if done["needsConversion"]:
                    self.transfers.enter(transfer_id, State.CONVERTING)
                facts = self._arrival.model(entry, folder / "snapshot", done["commit"])
            else:
                assert self._finish_dataset is not None
                self.transfers.enter(transfer_id, State.CONVERTING)
                facts = self._finish_dataset(entry, folder / "snapshot", done["commit"], lambda _done, _total: None)
        except ArrivalFailed as failure:
            self.transfers.fail(transfer_id, failure.code, {"id": entry.id})
            return
        # Before anyone hears of the end: who then deletes the asset and begins anew works in the same folder.
        self._arrival.clear(folder)
        self.transfers.finish(transfer_id, **facts)


def _environment(token: str | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("KARGAH_TOKEN", TOKEN_ENV, "HF_TOKEN")}
    kept.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", PYTHONUTF8="1")
    return kept | ({TOKEN_ENV: token} if token else {})


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        try:
            pipe.close()
        except OSError:
            return


def _kind(kind: str) -> Kind:
    return "model" if kind == "model" else "dataset"
