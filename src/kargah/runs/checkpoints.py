"""Checkpoints as people manage them: where one comes from, its files, pinning, deleting, and pruning by a policy.

What somebody needs never goes: what a run or an endpoint holds, what an unfinished run goes on from, what is pinned.
A folder is removed by a rename first, inside the transaction that forgets it, and comes back if that fails.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.orm import Session

from kargah.assets.models import AssetRow, HoldRow
from kargah.assets.registry import Registry
from kargah.ground.db import Database, after_commit
from kargah.ground.errors import InUse
from kargah.runs.checkpoint_card import model_card
from kargah.runs.checkpoint_files import Archive, OpenFile, open_archive, open_file
from kargah.runs.checkpoint_kept import CHECKPOINT, PINNED, refresh_kept
from kargah.runs.checkpoint_lineage import Lineage, read_lineage
from kargah.runs.errors import CheckpointNotFound
from kargah.runs.ingest import forget_checkpoint
from kargah.runs.ledger import Ledger
from kargah.runs.models import RunRow
from kargah.runs.states import ENDED, RunState
from kargah.spec.layout import fsync_folder
from kargah.spec.lock import exclusive
from kargah.text.languages import Language

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a policy removed, or would remove; `kept` counts the checkpoints that are left."""

    removed: list[AssetRow]
    kept: int
    freed_bytes: int


class Checkpoints:
    """The checkpoints of this installation."""

    def __init__(self, database: Database, registry: Registry, ledger: Ledger) -> None:
        self.database = database
        self.registry = registry
        self.ledger = ledger

    def get(self, session: Session, checkpoint_id: str) -> AssetRow:
        """The checkpoint. Raises `CheckpointNotFound`."""
        row = self.registry.find(session, CHECKPOINT, checkpoint_id)
        if row is None or row.path is None:
            raise CheckpointNotFound(id=checkpoint_id)
        return row

    def lineage(self, checkpoint_id: str) -> Lineage:
        """Where a checkpoint comes from and what came from it. Raises `CheckpointNotFound`, `ModelDamaged`."""
        with self.database.read() as session:
            return read_lineage(session, self.registry, self.get(session, checkpoint_id))

    def archive(self, checkpoint_id: str, language: Language, *, training: bool) -> tuple[str, Archive]:
        """A file name, and the zip of a checkpoint with its card, open; with `training` also what a run needs to go on.

        Raises `CheckpointNotFound`, `ModelDamaged`.
        """
        lineage = self.lineage(checkpoint_id)
        archive = open_archive(checkpoint_id, lineage.folder, model_card(lineage, language), training=training)
        return f"{lineage.row.name}.zip", archive

    def file(self, checkpoint_id: str, name: str) -> OpenFile:
        """One file of a checkpoint, open. Raises `CheckpointNotFound`, `NoSuchFile`, `ModelDamaged`."""
        with self.database.read() as session:
            folder = self.registry.folder(self.get(session, checkpoint_id))
        return open_file(checkpoint_id, folder, name)

    def pin(self, checkpoint_id: str, pinned: bool) -> AssetRow:
        """Let a checkpoint stay whatever the limits say, or no longer. Raises `CheckpointNotFound`, also for one that
        its run's program removed a moment ago."""
        with self.database.write() as session:
            row = self.get(session, checkpoint_id)
            row.facts = {**row.facts, PINNED: pinned}
            session.flush()
            gone = refresh_kept(session, self.registry, self.ledger, str(row.run_id))
            if pinned and (Path(str(row.path)).name in gone or not self.registry.folder(row).is_dir()):
                raise CheckpointNotFound(id=checkpoint_id)
        return row

    def delete(self, checkpoint_id: str) -> int:
        """Delete a checkpoint. Returns the bytes the disk got back. Raises `CheckpointNotFound`, and `InUse`, which
        tells who needs it and what would break."""
        with self.database.write() as session:
            row = self.get(session, checkpoint_id)
            holders = self.registry.holders(session, CHECKPOINT, row.id)
            if holders:
                raise _in_use(row, holders)
            doomed, freed = self._set_aside(session, row)
            session.delete(row)
            self.ledger.events.append(session, "assets", "removed", {"kind": row.kind, "id": row.id})
        _clear(doomed)
        return freed

    def on_remove(self, session: Session, row: AssetRow) -> int:
        """The registry deletes a checkpoint that nobody holds. Returns the bytes the disk gets back with the commit.
        Raises `InUse`."""
        doomed, freed = self._set_aside(session, row)
        after_commit(session, lambda: _clear(doomed))
        return freed

    def prune(self, run_id: str | None, *, keep_last: int, keep_best: bool, dry_run: bool) -> Pruning:
        """Remove, of one run or of each, what is neither among its newest `keep_last`, nor its best where those are
        kept, nor needed by anybody. What cannot be removed is kept; the others go all the same."""
        with self.database.read() as session:
            rows = self.registry.listed(session, [CHECKPOINT], run_id)
            chosen = self._dispensable(session, rows, keep_last, keep_best)
        if dry_run:
            freed = _exclusive_bytes(self.registry.folder(row) for row in chosen if row.path)
            return Pruning(chosen, len(rows) - len(chosen), freed)
        removed: list[AssetRow] = []
        freed = 0
        for row in chosen:
            try:
                freed += self.delete(row.id)
            except (InUse, CheckpointNotFound):
                # Somebody came to need it, or its run removed it, since it was chosen.
                continue
            except OSError:
                log.exception("checkpoint %s could not be removed", row.id)
                continue
            removed.append(row)
        return Pruning(removed, len(rows) - len(removed), freed)

    def _dispensable(self, session: Session, rows: list[AssetRow], keep_last: int, keep_best: bool) -> list[AssetRow]:
        held = set(session.scalars(select(HoldRow.asset_id).where(HoldRow.kind == CHECKPOINT)).all())
        by_run: dict[str, list[AssetRow]] = {}
        for row in rows:
            by_run.setdefault(str(row.run_id), []).append(row)
        chosen = []
        for run_id, own in by_run.items():
            run = session.get(RunRow, run_id)
            own.sort(key=_step, reverse=True)
            for row in own[keep_last:]:
                is_best = bool(row.facts.get("best")) or (run is not None and run.best_checkpoint == row.id)
                needed = row.id in held or bool(row.facts.get(PINNED)) or _is_needed(run, row, own[0])
                if not needed and not (keep_best and is_best):
                    chosen.append(row)
        return chosen

    def _set_aside(self, session: Session, row: AssetRow) -> tuple[Path | None, int]:
        """Rename a checkpoint's folder away and let its run forget it. Returns where it is now, and its bytes."""
        if row.facts.get(PINNED):
            raise _in_use(row, [PINNED])
        run = session.get(RunRow, row.run_id) if row.run_id else None
        newest = max(self.registry.listed(session, [CHECKPOINT], row.run_id), key=_step)
        if run is not None and _is_needed(run, row, newest):
            raise InUse(
                id=row.id,
                details={"holders": [f"run:{run.id}"], "breaks": [{"kind": "unfinishedRun", "id": run.id}]},
            )
        forget_checkpoint(session, row)
        folder = self.registry.home.root / row.path if row.path else None
        if folder is None or not folder.is_dir():
            return None, 0
        # A program that starts again clears such names away, should this process die before it does.
        doomed = folder.with_name(f".{folder.name}.deleted.partial")
        with exclusive(self.ledger.run_dir(str(row.run_id)).checkpoints_lock):
            shutil.rmtree(doomed, ignore_errors=True)
            try:
                os.rename(folder, doomed)
            except FileNotFoundError:
                return None, 0
            fsync_folder(folder.parent)
        event.listen(session, "after_rollback", lambda _: _bring_back(doomed, folder), once=True)
        return doomed, _exclusive_bytes([doomed])


def _is_needed(run: RunRow | None, row: AssetRow, newest: AssetRow) -> bool:
    """Whether a run that has not ended goes on from a checkpoint, or may come back to it at its end."""
    if run is None or RunState(run.status) in ENDED:
        return False
    returns = bool((run.spec.get("config") or {}).get("enableEarlyStopping"))
    is_best = bool(row.facts.get("best")) or run.best_checkpoint == row.id
    return row.id in (newest.id, run.last_checkpoint) or (returns and is_best)


def _in_use(row: AssetRow, holders: list[str]) -> InUse:
    breaks: list[dict[str, Any]] = []
    for holder in holders:
        kind, _, name = holder.partition(":")
        breaks.append({"kind": kind, "id": name or row.id})
    return InUse(id=row.id, details={"holders": holders, "breaks": breaks})


def _step(row: AssetRow) -> int:
    return int(row.facts.get("step") or 0)


def _exclusive_bytes(folders: Iterable[Path]) -> int:
    """What deleting all of `folders` gives back: contents that are linked from nowhere else, each once."""
    links: dict[tuple[int, int], list[os.stat_result]] = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    info = os.lstat(os.path.join(place, name))
                    links.setdefault((info.st_dev, info.st_ino), []).append(info)
    return sum(infos[0].st_size for infos in links.values() if infos[0].st_nlink == len(infos))


def _clear(doomed: Path | None) -> None:
    if doomed is not None:
        try:
            shutil.rmtree(doomed)
        except OSError:
            # It is forgotten already; the next removal in this place, or the run's program, takes what is left.
            log.exception("what is left of the checkpoint %s could not be removed", doomed.name)


def _bring_back(doomed: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):
        os.rename(doomed, folder)
