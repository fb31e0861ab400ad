"""Uploads: what was received becomes a data set, one after the other, in a thread of this room.

An upload is a transfer of origin `upload`; its files wait in `uploads/<transfer id>/`. They are put there in the
transaction that opens the transfer, so after a restart every unfinished transfer either has all its files and is taken
up again, or ends with `UPLOAD_INTERRUPTED`. The files are deleted once the transfer has ended.
"""

import contextlib
import errno
import logging
import os
import queue
import shutil
import threading
import time
from pathlib import Path

from kargah.assets.blobs import exclusive_bytes
from kargah.assets.registry import Registry
from kargah.assets.transfers import State, Transfers
from kargah.datasets.errors import UploadInterrupted
from kargah.datasets.importing import import_files, sweep
from kargah.datasets.receiving import Upload, read_upload
from kargah.ground.errors import DiskFull, Internal, InvalidState, KargahError
from kargah.spec.layout import fsync_folder

log = logging.getLogger(__name__)

ORIGIN = "upload"
PROGRESS_EVERY_SECONDS = 0.25
CANCELLED = "CANCELLED"


class _Stopped(Exception):
    """The server is going away; the import is taken up again at its next start."""


class _Cancelled(Exception):
    """A person wants this import no more."""


class Importer:
    """Takes uploads and imports them one at a time. Between `start` and `stop` it works."""

    def __init__(self, registry: Registry, transfers: Transfers) -> None:
        self._registry = registry
        self._transfers = transfers
        self._uploads = registry.home.uploads
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._cancelled: set[str] = set()
        self._importing: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take up what a former server left, and begin to work."""
        sweep(self._registry.home)
        unfinished = [snapshot.transfer_id for snapshot in self._transfers.unfinished(ORIGIN)]
        for folder in self._uploads.iterdir():
            if folder.name not in unfinished:
                shutil.rmtree(folder, ignore_errors=True)
        for transfer_id in unfinished:
            self._transfers.adopt(transfer_id)
            self._waiting.put(transfer_id)
        self._thread = threading.Thread(target=self._work, name="dataset-importer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave the present import for the next start, and end."""
        self._stopping.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def accept(self, upload: Upload, folder: Path) -> str:
        """Open the transfer of an upload that was received into `folder`. Returns the transfer's id."""
        with self._registry.database.write() as session:
            asset = {"name": upload.name, "source": "local"}
            snapshot = self._transfers.begin(session, "dataset", upload.dataset_id, ORIGIN, asset)
            # Within the transaction: no commit without the files, and files without a commit are swept at a start.
            os.rename(folder, self._uploads / snapshot.transfer_id)
            fsync_folder(self._uploads)
        self._waiting.put(snapshot.transfer_id)
        return snapshot.transfer_id

    def cancel(self, transfer_id: str) -> int:
        """End an import with `CANCELLED`: one that waits at once, one under way within a moment.

        Returns the bytes that were received for it, which are thrown away. Raises `InvalidState` when it has ended or
        was cancelled before.
        """
        folder = self._uploads / transfer_id
        with self._guard:
            if self._transfers.current(transfer_id) is None or transfer_id in self._cancelled or not folder.is_dir():
                raise InvalidState(details={"state": "ended"})
            self._cancelled.add(transfer_id)
            received = exclusive_bytes(folder)
            if transfer_id != self._importing:
                # It may stand behind a long one.
                self._transfers.fail(transfer_id, CANCELLED)
                shutil.rmtree(folder, ignore_errors=True)
        return received

    def _work(self) -> None:
        while (transfer_id := self._waiting.get()) is not None and not self.stopping:
            folder = self._uploads / transfer_id
            with self._guard:
                self._importing = transfer_id
            try:
                self._import(transfer_id, folder)
            except _Stopped:
                return
            except _Cancelled:
                self._transfers.fail(transfer_id, CANCELLED)
            except KargahError as error:
                self._transfers.fail(transfer_id, error.code, error.params, error.details)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                log.error("import of %s failed", transfer_id, exc_info=error)
                self._transfers.fail(transfer_id, DiskFull.code if full else Internal.code)
            except Exception as error:
                # The edge of the thread: whatever happened, the transfer must end and the next one begin.
                log.exception("import of %s failed", transfer_id, exc_info=error)
                self._transfers.fail(transfer_id, Internal.code)
            with self._guard:
                self._importing = None
                self._cancelled.discard(transfer_id)
            shutil.rmtree(folder, ignore_errors=True)

    def _import(self, transfer_id: str, folder: Path) -> None:
        self._check_wishes(transfer_id)
        upload = read_upload(folder)
        if upload is None:
            raise UploadInterrupted()
        sources = upload.sources(folder)
        self._transfers.progress(transfer_id, total_bytes=sum(source.size_bytes for source in sources))
        self._transfers.enter(transfer_id, State.CONVERTING)
        told_at = 0.0

        def on_progress(done: int, total: int) -> None:
            nonlocal told_at
            self._check_wishes(transfer_id)
            if time.monotonic() - told_at >= PROGRESS_EVERY_SECONDS:
                told_at = time.monotonic()
                self._transfers.progress(transfer_id, bytes_downloaded=done)

        home = self._registry.home
        imported = import_files(home, upload.dataset_id, sources, upload.columns, upload.task, on_progress)
        self._transfers.finish(
            transfer_id,
            size_bytes=imported.size_bytes,
            path=imported.path,
            revision=imported.version,
            facts=imported.facts,
        )

    def _check_wishes(self, transfer_id: str) -> None:
        if self.stopping:
            raise _Stopped
        if transfer_id in self._cancelled:
            raise _Cancelled


def discard(folder: Path) -> None:
    """Delete what was received and will not be imported."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
