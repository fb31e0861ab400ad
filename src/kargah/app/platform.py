"""The platform: every room of one installation, built once, in order, from the settings. Nothing is built at import."""

import logging
from pathlib import Path
from typing import Any

from kargah.assets.approvals import Approvals
from kargah.assets.builtin_models import load_builtin_models
from kargah.assets.catalog import Entry, load_catalog
from kargah.assets.registry import Registry
from kargah.assets.transfers import Transfers
from kargah.datasets.builtin import load_builtin
from kargah.datasets.importing import import_files
from kargah.datasets.sources import sources_in
from kargah.datasets.uploads import Importer
from kargah.ground.db import Database
from kargah.ground.events import EventLog
from kargah.ground.home import Home
from kargah.ground.migrate import migrate
from kargah.ground.settings import Settings
from kargah.hub.downloads import Downloads
from kargah.hub.importing import Imports
from kargah.hub.job import TransferSettings
from kargah.runs.adoption import Adoption
from kargah.runs.checkpoints import Checkpoints
from kargah.runs.executor import LocalExecutor
from kargah.runs.ledger import Ledger
from kargah.runs.memory import budget
from kargah.runs.missing_records import write_missing_records
from kargah.runs.queue import Capacity
from kargah.runs.service import Runs
from kargah.runs.supervisor import HungPolicy, Supervisor

log = logging.getLogger(__name__)


class Platform:
    """The rooms of one installation. `open` before use, `close` after; both may block."""

    def __init__(self, settings: Settings, transfer_settings: TransferSettings | None = None) -> None:
        self.settings = settings
        self._is_open = False
        self.catalog = load_catalog(settings.catalog)
        self.home = Home(settings.home)
        self.home.prepare()
        self.home.claim()
        self.database = Database(settings.effective_database_url)
        self.revision = migrate(self.database, self.home.backups)
        self.events = EventLog(self.database)
        self.registry = Registry(self.database, self.events, self.home, self.catalog)
        self.approvals = Approvals(self.database, self.events, self.catalog, self.registry.records)
        self.transfers = Transfers(self.database, self.events, self.registry)
        self.downloads = Downloads(
            self.database, self.registry, self.transfers, self.catalog, self.home, settings, transfer_settings
        )
        self.imports = Imports(self.registry, self.transfers, settings.max_import_bytes)
        self.importer = Importer(self.registry, self.transfers)
        executor = LocalExecutor()
        gpus = executor.gpus()
        capacity = Capacity(settings.local_runs or max(1, len(gpus)), budget(settings.run_memory_bytes), gpus)
        self.ledger = Ledger(self.events, self.home.runs)
        self.adoption = Adoption(self.ledger, self.registry)
        self.supervisor = Supervisor(
            self.database,
            self.ledger,
            self.registry,
            executor,
            capacity,
            HungPolicy(settings.hung_after_seconds, settings.hung_runs),
        )
        self.runs = Runs(self.database, self.ledger, self.registry, self.supervisor, has_gpu=executor.has_gpu())
        self.checkpoints = Checkpoints(self.database, self.registry, self.ledger)
        self.registry.on_remove("checkpoint", self.checkpoints.on_remove)
        self.downloads.on_dataset(self._dataset_arrived)
        self.imports.on_dataset(self._dataset_arrived)
        self.downloads.on_upload(self.importer.cancel)

    def open(self) -> None:
        """Begin to supervise, bring in what is built in, take up what was under way. The second time does nothing."""
        if self._is_open:
            return
        self._is_open = True
        self.registry.records.catch_up(self.database)
        self._complete_records()
        self.supervisor.start()
        self.approvals.settle()
        load_builtin(self.registry)
        load_builtin_models(self.registry)
        self.importer.start()
        self.imports.start()
        self.downloads.resume_all()

    def _complete_records(self) -> None:
        if self.ledger.is_complete:
            return
        try:
            write_missing_records(self.database, self.home.runs, also_changed=True)
            self.ledger.set_complete()
        except OSError:
            # A full disk. The next start asks again.
            log.exception("records of runs could not be written")

    def close(self) -> None:
        """End the threads. Training programs go on; downloads and imports go on with the next server."""
        self.downloads.stop()
        self.importer.stop()
        self.imports.stop()
        self.supervisor.stop()
        self.database.close()
        self.home.release()

    def _dataset_arrived(self, entry: Entry, folder: Path, commit: str, report: Any) -> dict[str, Any]:
        files: dict[str, str] = {split: path for split, path in entry.files.items()}  # noqa: C416 - widens the key
        imported = import_files(self.home, entry.id, sources_in(folder, files), entry.columns or None, None, report)
        facts = {**imported.facts, "commit": commit}
        return {"size_bytes": imported.size_bytes, "path": imported.path, "revision": commit, "facts": facts}
