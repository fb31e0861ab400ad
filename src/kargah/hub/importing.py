"""Imports: approved models and data sets that come by hand, from a stick or another machine, and not from a hub.

An import is a transfer of origin `import`. What was received waits in `imports/<transfer id>/`, with `import.json`
written last; the folder is put there in the transaction that opens the transfer, so that after a restart
every unfinished import either has all its files and is taken up again, or ends with `UPLOAD_INTERRUPTED`. One import
is worked on at a time, in a thread of this room.
"""

import errno
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kargah.assets import blobs
from kargah.assets.catalog import Entry, Kind
from kargah.assets.registry import Registry, remove_folder
from kargah.assets.transfers import Snapshot, State, Transfers
from kargah.ground.errors import Internal, InvalidState, KargahError
from kargah.hub.arrival import Arrival, ArrivalFailed
from kargah.hub.blobs import BlobStore
from kargah.hub.failure import TransferFailed
from kargah.hub.import_archive import Limits, open_archive, suffix_of
from kargah.hub.import_intake import Chosen, check_space, choose, digest_all, keep, pins_of, plan_of, proof_of
from kargah.hub.import_source import Source, SpooledSource
from kargah.hub.import_survey import Claims, entry_of, survey
from kargah.hub.job import Job
from kargah.hub.plan import Plan
from kargah.hub.snapshot import build_snapshot
from kargah.spec.layout import fsync_folder, read_json, write_json

log = logging.getLogger(__name__)

ORIGIN = "import"
FOLDER = "imports"
ORDER = "import.json"
INTERRUPTED = "UPLOAD_INTERRUPTED"
TOLD_EVERY_SECONDS = 0.25
LAST_WORDS_SECONDS = 5.0

Finisher = Callable[[Entry, Path, str, Callable[[int, int], None]], dict[str, Any]]
"""Turns the files of a data set (folder, commit, report of bytes) into an asset; gives the asset's last facts."""


@dataclass(frozen=True, slots=True)
class Order:
    """What was received: files spooled as their number, under the names they came with, and what was said of them."""

    kind: Kind
    wanted: str | None
    files: tuple[str, ...]
    commit: str | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def source(self, folder: Path, limits: Limits) -> Source:
        """The files as a source: a single one whose name is an archive's is opened as that."""
        if len(self.files) == 1 and suffix_of(self.files[0]) is not None and "/" not in self.files[0]:
            return open_archive(self.files[0], folder / "0", limits)
        return SpooledSource("", {name: folder / str(number) for number, name in enumerate(self.files)})


class _Stopped(Exception):
    """The server is going away; the import is taken up again at its next start."""


class _Cancelled(Exception):
    """The transfer was ended by somebody else."""


class Imports:
    """The imports of this server. Between `start` and `stop` they are worked on, one after the other."""

    def __init__(self, registry: Registry, transfers: Transfers, max_bytes: int) -> None:
        self._registry = registry
        self._transfers = transfers
        self._home = registry.home
        self.folder = registry.home.root / FOLDER
        self._arrival = Arrival(registry.home)
        self._store = BlobStore(registry.home.blobs)
        self._limits = Limits(max_bytes)
        self._finish_dataset: Finisher | None = None
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def max_bytes(self) -> int:
        """The largest import, packed and unpacked."""
        return self._limits.max_bytes

    def on_dataset(self, finisher: Finisher) -> None:
        """How the files of a data set become an asset; the rooms beside this one cannot be asked directly."""
        self._finish_dataset = finisher

    def start(self) -> None:
        """Take up what a former server left, clear away what nobody wants, and begin to work."""
        unfinished = [snapshot.transfer_id for snapshot in self._transfers.unfinished(ORIGIN)]
        self.folder.mkdir(exist_ok=True)
        left = [path for path in self.folder.iterdir() if path.name not in unfinished]
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        if left:
            blobs.sweep(self._home)
        for transfer_id in unfinished:
            self._transfers.adopt(transfer_id)
            self._waiting.put(transfer_id)
        self._thread = threading.Thread(target=self._work, name="importer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave the present import for the next start."""
        self._stopping.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(LAST_WORDS_SECONDS)

    def accept(self, order: Order, folder: Path) -> tuple[Entry, Snapshot | None, bool]:
        """Open the transfer of what was received into `folder`, unless the entry is ready already.

        Returns the entry, its transfer, and whether one began. Raises `ModelNotAllowed`, `DatasetNotAllowed`,
        `InvalidState` while the entry is on its way, and, where the source must say what it is, what is wrong with it.
        """
        entry = self._entry(order, folder)
        with self._registry.database.write() as session:
            row = self._registry.find(session, entry.kind, entry.id)
            if row is not None and row.status == "ready":
                return entry, self._transfers.latest(entry.kind, entry.id), False
            if row is not None and row.status == "downloading":
                raise InvalidState(details={"state": row.status})
            asset = {"name": entry.name, "source": "HuggingFace", "size_bytes": entry.size_bytes}
            snapshot = self._transfers.begin(session, entry.kind, entry.id, ORIGIN, asset)
            # Within the transaction: no commit without the files, and files without a commit are cleared at a start.
            os.rename(folder, self._folder(snapshot.transfer_id))
            fsync_folder(self.folder)
        self._waiting.put(snapshot.transfer_id)
        return entry, snapshot, True

    def _entry(self, order: Order, folder: Path) -> Entry:
        catalog = self._registry.catalog
        if order.wanted is not None:
            return catalog.require(order.kind, order.wanted)
        return entry_of(survey(order.source(folder, self._limits)), catalog, order.kind, None)

    def _folder(self, transfer_id: str) -> Path:
        return self.folder / transfer_id

    def _work(self) -> None:
        while (transfer_id := self._waiting.get()) is not None and not self._stopping.is_set():
            try:
                self._import(transfer_id)
            except _Stopped:
                return
            except _Cancelled:
                log.info("import %s was cancelled", transfer_id)
            except TransferFailed as failure:
                log.info("import %s: %s", transfer_id, failure)
                self._transfers.fail(transfer_id, failure.code, failure.params, failure.params or None)
            except ArrivalFailed as failed:
                self._transfers.fail(transfer_id, failed.code)
            except KargahError as error:
                self._transfers.fail(transfer_id, error.code, error.params, error.details)
            except OSError as error:
                log.error("import %s failed", transfer_id, exc_info=error)
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                self._transfers.fail(transfer_id, "DISK_FULL" if full else "STORAGE_FAILED")
            except Exception as error:
                # The edge of the thread: whatever happened, the transfer must end and the next one begin.
                log.exception("import %s failed", transfer_id, exc_info=error)
                self._transfers.fail(transfer_id, Internal.code)
            self._arrival.clear(self._folder(transfer_id))

    def _import(self, transfer_id: str) -> None:
        self._check_wishes(transfer_id)
        folder = self._folder(transfer_id)
        order = read_order(folder)
        present = self._transfers.get(transfer_id)
        if order is None:
            raise TransferFailed(INTERRUPTED, "not all files are there")
        self._transfers.enter(transfer_id, State.RESOLVING)
        catalog, source = self._registry.catalog, order.source(folder, self._limits)
        found = survey(source, Claims(order.commit, order.digests))
        entry = entry_of(found, catalog, order.kind, present.asset_id)
        chosen = choose(entry, source, found)
        check_space(chosen, self._store)
        self._transfers.progress(transfer_id, total_bytes=chosen.total_bytes, bytes_downloaded=0)
        self._transfers.enter(transfer_id, State.VERIFYING)
        plan = self._take(transfer_id, folder, source, chosen)
        self._check_wishes(transfer_id)
        self._arrive(transfer_id, folder, chosen, plan, source.origin)

    def _take(self, transfer_id: str, folder: Path, source: Source, chosen: Chosen) -> Plan:
        told_at = 0.0

        def told(done: int, file: str) -> None:
            nonlocal told_at
            self._check_wishes(transfer_id)
            if time.monotonic() - told_at >= TOLD_EVERY_SECONDS:
                told_at = time.monotonic()
                self._transfers.progress(transfer_id, bytes_downloaded=done, file=file)

        digested = digest_all(chosen, source, folder / "contents", told)
        entry = chosen.entry
        job = Job(
            repo_id=entry.repo_id,
            kind=entry.kind,
            endpoints=(),
            blobs=self._home.blobs,
            target=folder / "snapshot",
            revision=entry.revision,
            pins=pins_of(entry, chosen.found),
            patterns=tuple(entry.files.values()),
        )
        plan = plan_of(chosen, digested, job)
        keep(plan, chosen, digested, self._store)
        self._transfers.progress(transfer_id, bytes_downloaded=chosen.total_bytes, file=None)
        build_snapshot(plan, self._store, folder / "snapshot")
        return plan

    def _arrive(self, transfer_id: str, folder: Path, chosen: Chosen, plan: Plan, origin: str) -> None:
        entry = chosen.entry
        if entry.kind == "model":
            if plan.needs_conversion:
                self._transfers.enter(transfer_id, State.CONVERTING)
            asset = self._arrival.model(entry, folder / "snapshot", plan.commit)
        else:
            assert self._finish_dataset is not None
            self._transfers.enter(transfer_id, State.CONVERTING)
            asset = self._finish_dataset(
                entry, folder / "snapshot", plan.commit, lambda _done, _total: self._check_wishes(transfer_id)
            )
        facts = {name: value for name, value in asset["facts"].items() if name != "endpoint"}
        asset["facts"] = {**facts, "importedFrom": origin, "verified": proof_of(chosen)}
        self._transfers.finish(transfer_id, **asset)
        if self._transfers.get(transfer_id).state is State.ERROR:
            # Somebody cancelled at the last moment: then it is not here.
            remove_folder(self._home.root / asset["path"])

    def _check_wishes(self, transfer_id: str) -> None:
        if self._stopping.is_set():
            raise _Stopped
        if self._transfers.current(transfer_id) is None:
            raise _Cancelled


def write_order(folder: Path, order: Order) -> None:
    """Keep what was received; written when all files are there. Raises `OSError`."""
    write_json(folder / ORDER, asdict(order))


def read_order(folder: Path) -> Order | None:
    """What was received into a folder, or None when it is not whole."""
    value = read_json(folder / ORDER)
    if value is None:
        return None
    order = Order(**{**value, "files": tuple(value["files"])})
    return order if all((folder / str(number)).is_file() for number in range(len(order.files))) else None
