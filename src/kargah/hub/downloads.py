"""Downloads: what a person asks of them, the queue, and the room they claim on the disk.

A limited number is under way at once, each in a thread (`kargah.hub.run`) that watches a worker process; the others
wait in their order, which a file keeps over restarts. When the server dies the workers see their standard input end and
go too; the next server takes every unfinished download up again, and they go on from the parts on disk.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from kargah.assets.catalog import Catalog, Entry, Kind
from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.assets.transfers import Snapshot, State, Transfers
from kargah.ground.db import Database
from kargah.ground.errors import DiskFull, InvalidState, Offline
from kargah.ground.home import Home, folder_name
from kargah.ground.settings import Settings
from kargah.hub import space
from kargah.hub.active import Active
from kargah.hub.arrival import Arrival
from kargah.hub.job import TransferSettings
from kargah.hub.run import DownloadRun, Finisher
from kargah.spec.layout import read_json, write_json

log = logging.getLogger(__name__)

ORIGIN = "hub"
QUEUE = "queue.json"
DISCARD_WAIT_SECONDS = 10.0
"""A worker that was told to end is killed long before."""

CancelUpload = Callable[[str], int]
"""Ends the upload of a transfer id and gives the bytes that were received for it."""


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
        self.transfer_settings = _limited(transfer_settings or TransferSettings(), settings)
        self._guard = threading.RLock()
        self._active: dict[str, Active] = {}
        self._queue: list[Active] = []
        self._stopping = threading.Event()
        self._run = DownloadRun(self, transfers, home, settings, Arrival(home))
        self._cancel_upload: CancelUpload | None = None
        for kind in ("model", "dataset"):
            registry.on_remove(kind, self._forget)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def on_dataset(self, finisher: Finisher) -> None:
        """How the files of a data set become an asset; the rooms beside this one cannot be asked directly."""
        self._run.finish_dataset = finisher

    def on_upload(self, cancel: CancelUpload) -> None:
        """How an upload is ended, which shares its progress stream and its ids with the downloads of data sets."""
        self._cancel_upload = cancel

    def resume_all(self) -> None:
        """Take up what a former server left unfinished, in its order, and throw away what nobody wants any more."""
        order = self._former_order()
        unfinished = self.transfers.unfinished(ORIGIN)
        for snapshot in sorted(unfinished, key=lambda one: order.get(one.transfer_id, len(order))):
            entry = self.catalog.find(_kind(snapshot.kind), snapshot.asset_id)
            self.transfers.adopt(snapshot.transfer_id)
            if entry is None:
                code = "MODEL_NOT_ALLOWED" if snapshot.kind == "model" else "DATASET_NOT_ALLOWED"
                self.transfers.fail(snapshot.transfer_id, code, {"id": snapshot.asset_id})
            elif snapshot.state is not State.PAUSED and not self._settings.offline:
                self._queue.append(Active(snapshot, entry, snapshot.total_bytes or entry.size_bytes))
        self._fill()
        threading.Thread(target=self._expire_daily, name="downloads-expiry", daemon=True).start()

    def stop(self) -> None:
        """Let every worker go; their downloads stay unfinished and go on with the next server."""
        with self._guard:
            self._stopping.set()
            active = list(self._active.values())
            self._queue.clear()
        for one in active:
            one.terminate()

    def start(self, kind: Kind, any_id: str) -> tuple[Snapshot | None, bool]:
        """Begin to fetch an approved asset. Returns its transfer and whether a new one began.

        Raises `ModelNotAllowed`, `DatasetNotAllowed`, `Offline`, `DiskFull`.
        """
        entry = self.catalog.require(kind, any_id)
        with self._guard:
            with self._database.write() as session:
                row = self._registry.find(session, kind, entry.id)
                if row is not None and row.status == "ready":
                    return self.transfers.latest(kind, entry.id), False
                if row is not None and row.status == "downloading":
                    present = self.transfers.latest(kind, entry.id)
                    if present is not None and not present.ended:
                        return present, False
                if self._settings.offline:
                    raise Offline()
                self._check_space(entry, entry.size_bytes, self._held_bytes(entry))
                asset = {"name": entry.name, "source": "HuggingFace", "size_bytes": entry.size_bytes}
                snapshot = self.transfers.begin(session, kind, entry.id, ORIGIN, asset)
            self._enqueue(Active(snapshot, entry, entry.size_bytes))
        return snapshot, True

    def pause(self, kind: Kind, any_id: str) -> Snapshot:
        """Let go of the network and keep the bytes. Raises `InvalidState` when there is nothing to let go of."""
        with self._guard:
            snapshot, active = self._under_way(kind, any_id)
            if snapshot.state is State.PAUSED:
                return snapshot
            if active is None or active in self._queue:
                self._drop(active)
                self.transfers.enter(snapshot.transfer_id, State.PAUSED)
            else:
                active.tell("pause")
        return self.transfers.get(snapshot.transfer_id)

    def resume(self, kind: Kind, any_id: str) -> Snapshot:
        """Go on with a paused download. Raises `InvalidState`, `Offline`, `DiskFull`."""
        with self._guard:
            snapshot, _ = self._under_way(kind, any_id)
            if snapshot.state is not State.PAUSED:
                raise InvalidState(details={"state": snapshot.state.value})
            if self._settings.offline:
                raise Offline()
            entry = self.catalog.require(kind, any_id)
            total = snapshot.total_bytes or entry.size_bytes
            self._check_space(entry, total, snapshot.bytes_downloaded or self._held_bytes(entry))
            self.transfers.enter(snapshot.transfer_id, State.QUEUED)
            self._enqueue(Active(snapshot, entry, total))
        return self.transfers.get(snapshot.transfer_id)

    def retry(self, kind: Kind, any_id: str) -> tuple[Snapshot, bool]:
        """Ask now: one that waits for a server waits no longer, one that ended in an error begins again.

        Returns the transfer and whether a new one began. Raises `InvalidState` for one that is paused, waits for its
        turn, or has arrived, and all that `start` does.
        """
        with self._guard:
            snapshot = self._latest(kind, any_id)
            if snapshot.state is State.ERROR and self.catalog.find(kind, any_id) is not None:
                begun, started = self.start(kind, any_id)
                return begun or snapshot, started
            active = self._active.get(snapshot.transfer_id)
            if active is None or active.arriving or snapshot.state is State.PAUSED:
                raise InvalidState(details={"state": snapshot.state.value})
            active.say("retry")
        return self.transfers.get(snapshot.transfer_id), False

    def cancel(self, kind: Kind, any_id: str, *, discard: bool = False) -> tuple[Snapshot, int | None]:
        """End a download; its bytes stay for a later try, or with `discard` are thrown away, also those of one that
        ended before. Returns the transfer and the bytes given back, None when they stay.

        Raises `InvalidState`, also once all bytes are here. The upload of a data set is ended too; it keeps nothing.
        """
        with self._guard:
            snapshot = self._latest(kind, any_id)
            if self._is_upload(kind, any_id):
                return self._end_upload(snapshot)
            if snapshot.state is State.ERROR and discard:
                return snapshot, self._discard(kind, snapshot.asset_id)
            snapshot, active = self._under_way(kind, any_id, cancelling=True)
            if active is None or active in self._queue:
                self._drop(active)
                self.transfers.fail(snapshot.transfer_id, "CANCELLED")
            else:
                active.tell("cancel")
        if not discard:
            return self.transfers.get(snapshot.transfer_id), None
        if active is not None:
            active.ended.wait(DISCARD_WAIT_SECONDS)
        with self._guard:
            latest = self._latest(kind, any_id)
            if latest.transfer_id != snapshot.transfer_id or latest.state is not State.ERROR:
                raise InvalidState(details={"state": latest.state.value})
            return latest, self._discard(kind, latest.asset_id)

    def admit(self, active: Active, total_bytes: int, held_bytes: int) -> bool:
        """Whether a download whose size the hub has just told has room beside the others; it claims it then."""
        with self._guard:
            try:
                self._check_space(active.entry, total_bytes, held_bytes, beside=active)
            except DiskFull as full:
                active.refusal = full.details if isinstance(full.details, dict) else {}
                active.claimed_bytes = None
                return False
            active.claimed_bytes = total_bytes
            return True

    def may_arrive(self, active: Active) -> bool:
        """From here on it is too late to cancel, unless somebody did."""
        with self._guard:
            active.arriving = active.wish != "cancel"
            return active.arriving

    def share_bytes_per_second(self) -> int:
        """What each active download may bring in a second; 0 is no limit."""
        limit = self._settings.download_bytes_per_second
        return max(1, limit // max(1, len(self._active))) if limit else 0

    def tell_shares(self) -> None:
        """Tell every worker its share; there are more or fewer of them than before."""
        with self._guard:
            if self._settings.download_bytes_per_second:
                for one in self._active.values():
                    one.say(f"limit {self.share_bytes_per_second()}")

    def folder(self, kind: str, asset_id: str) -> Path:
        """Where a download works."""
        return self._home.downloads / f"{kind}--{folder_name(asset_id)}"

    def expire(self) -> int:
        """Throw away what ended downloads left longer ago than it is kept. Returns the bytes given back."""
        with self._guard:
            unfinished = {self.folder(one.kind, one.asset_id).name for one in self.transfers.unfinished(ORIGIN)}
            return space.expire(self._home, self._settings.keep_parts_days, unfinished)

    def _latest(self, kind: Kind, any_id: str) -> Snapshot:
        entry = self.catalog.find(kind, any_id)
        snapshot = self.transfers.latest(kind, entry.id if entry is not None else any_id)
        if snapshot is None:
            self.catalog.require(kind, any_id)
            raise InvalidState(details={"state": "none"})
        return snapshot

    def _is_upload(self, kind: Kind, any_id: str) -> bool:
        return kind == "dataset" and self.catalog.find(kind, any_id) is None

    def _end_upload(self, snapshot: Snapshot) -> tuple[Snapshot, int | None]:
        if snapshot.ended or self._cancel_upload is None:
            raise InvalidState(details={"state": snapshot.state.value})
        freed = self._cancel_upload(snapshot.transfer_id)
        return self.transfers.get(snapshot.transfer_id), freed

    def _under_way(self, kind: Kind, any_id: str, *, cancelling: bool = False) -> tuple[Snapshot, Active | None]:
        snapshot = self._latest(kind, any_id)
        if snapshot.ended or self._is_upload(kind, any_id):
            raise InvalidState(details={"state": snapshot.state.value})
        if not cancelling and snapshot.transfer_id not in [
            one.transfer_id for one in self.transfers.unfinished(ORIGIN)
        ]:
            # An import has no network to let go of. Cancelled it can be: whoever works on it sees that it has ended.
            raise InvalidState(details={"state": snapshot.state.value})
        waiting = next((one for one in self._queue if one.transfer_id == snapshot.transfer_id), None)
        active = self._active.get(snapshot.transfer_id) or waiting
        if active is not None and (active.arriving or active.wish == "cancel"):
            raise InvalidState(details={"state": snapshot.state.value})
        return snapshot, active

    def _forget(self, _session: Session, row: AssetRow) -> int:
        """An asset is being deleted: what an ended download of it left behind goes too, and its parts with it."""
        return space.remove_folder(self.folder(row.kind, row.id))

    def _discard(self, kind: Kind, asset_id: str) -> int:
        return space.discard(self._home, self.folder(kind, asset_id))

    def _held_bytes(self, entry: Entry) -> int:
        return space.held_bytes(self._home, self.folder(entry.kind, entry.id))

    def _check_space(
        self, entry: Entry, total_bytes: int | None, held_bytes: int, *, beside: Active | None = None
    ) -> None:
        """Raises `DiskFull` when what is to come does not fit beside what the other downloads still need."""
        if total_bytes is None or total_bytes <= held_bytes:
            return
        others = [one for one in [*self._active.values(), *self._queue] if one is not beside]
        reserved = sum(self._remaining_bytes(one) for one in others)
        needed = total_bytes - held_bytes + reserved + self.transfer_settings.disk_margin_bytes
        free = self._home.free_bytes()
        if needed > free:
            log.warning("no room for %s: %d bytes needed, %d free", entry.id, needed, free)
            raise DiskFull(details={"neededBytes": needed, "freeBytes": free, "reservedBytes": reserved})

    def _remaining_bytes(self, active: Active) -> int:
        present = self.transfers.current(active.transfer_id)
        return max(0, (active.claimed_bytes or 0) - (present.bytes_downloaded if present is not None else 0))

    def _enqueue(self, active: Active) -> None:
        with self._guard:
            self._queue.append(active)
        self._fill()

    def _drop(self, active: Active | None) -> None:
        if active is not None and active in self._queue:
            self._queue.remove(active)
            active.ended.set()
            self._tell_places()

    def _fill(self) -> None:
        with self._guard:
            if self.stopping:
                return
            while self._queue and len(self._active) < self._settings.parallel_downloads:
                active = self._queue.pop(0)
                self._active[active.transfer_id] = active
                name = f"download {active.entry.id}"
                threading.Thread(target=self._work, args=(active,), name=name, daemon=True).start()
            self.tell_shares()
            self._tell_places()

    def _work(self, active: Active) -> None:
        try:
            self._run.run(active)
        finally:
            with self._guard:
                # A pause lets a resume in before this thread has ended; what is here then is the resumed one.
                if self._active.get(active.transfer_id) is active:
                    del self._active[active.transfer_id]
                active.ended.set()
            self._fill()

    def _tell_places(self) -> None:
        """Say to those who wait where they stand, and keep the order for the next server."""
        for position, active in enumerate(self._queue, start=1):
            present = self.transfers.current(active.transfer_id)
            if present is not None and present.queue_position != position:
                self.transfers.progress(active.transfer_id, queue_position=position)
        order = [one.transfer_id for one in [*self._active.values(), *self._queue]]
        try:
            write_json(self._home.downloads / QUEUE, {"order": order})
        except OSError:
            # A full disk: they go on in the order of their beginning then.
            log.warning("the order of the queue could not be kept", exc_info=True)

    def _former_order(self) -> dict[str, int]:
        try:
            kept: Any = read_json(self._home.downloads / QUEUE)
            return {str(name): place for place, name in enumerate(kept["order"])}
        except (ValueError, KeyError, TypeError, OSError):
            return {}

    def _expire_daily(self) -> None:
        while True:
            try:
                freed = self.expire()
                if freed:
                    log.info("bytes of downloads that nobody took up again were thrown away: %d", freed)
            except OSError:
                log.warning("old parts could not be thrown away", exc_info=True)
            if self._stopping.wait(space.DAY_SECONDS):
                return


def _limited(transfer_settings: TransferSettings, settings: Settings) -> TransferSettings:
    """What a worker keeps to. It leaves a connection to each of the others, so that none of them stands still."""
    per_host = settings.connections_per_host
    at_once = max(1, per_host - settings.parallel_downloads + 1)
    return replace(
        transfer_settings,
        connections=min(transfer_settings.connections, at_once),
        connections_per_host=per_host,
        allow_private_redirects=transfer_settings.allow_private_redirects or settings.allow_private_redirects,
    )


def _kind(kind: str) -> Kind:
    return "model" if kind == "model" else "dataset"
