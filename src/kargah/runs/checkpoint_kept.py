"""`kept.json` of a run: which of its checkpoints must stay, as the training program reads it before it prunes.

The database decides (pins, holds); the file tells. It never says less than the database: what comes to be kept is
written before the commit, what no longer is goes after it, all of it in the turn of a write transaction.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from kargah.assets.models import AssetRow, HoldRow
from kargah.assets.registry import Registry
from kargah.ground.db import after_commit
from kargah.ground.errors import AssetNotReady
from kargah.runs.ledger import Ledger
from kargah.spec.layout import RunDir, read_json, write_json
from kargah.spec.lock import exclusive

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
PINNED = "pinned"

Kept = dict[str, list[str]]


def refresh_kept(session: Session, registry: Registry, ledger: Ledger, run_id: str) -> set[str]:
    """Make `kept.json` of a run say what the transaction of `session` says: pinned checkpoints, and those somebody
    holds. Returns the names of such checkpoints whose folder is gone. Raises `OSError`."""
    run_dir = ledger.run_dir(run_id)
    if not run_dir.root.is_dir():
        return set()
    wanted = _wanted(session, registry, run_id)
    with exclusive(run_dir.checkpoints_lock):
        gone = {name for name in wanted if not (run_dir.checkpoints / name).is_dir()}
        wanted = {name: reasons for name, reasons in wanted.items() if name not in gone}
        present = read_kept(run_dir)
        both = {name: sorted({*present.get(name, ()), *wanted.get(name, ())}) for name in sorted({*present, *wanted})}
        if both != present:
            write_json(run_dir.kept, both)
    if both != wanted:
        after_commit(session, lambda: _write(run_dir, wanted))
    return gone


def keep_used(session: Session, registry: Registry, ledger: Ledger, uses: Iterable[tuple[str, str]]) -> None:
    """Somebody just came to hold `uses` (pairs of kind and id): checkpoints among them must stay from now on.

    Raises `AssetNotReady` for one that the program of its run removed meanwhile.
    """
    for kind, checkpoint_id in uses:
        row = registry.find(session, kind, checkpoint_id) if kind == CHECKPOINT else None
        if row is None or row.run_id is None or row.path is None:
            continue
        if Path(row.path).name in refresh_kept(session, registry, ledger, row.run_id):
            raise AssetNotReady(id=row.id, details={"id": row.id, "status": "removed"})


def release_run(session: Session, registry: Registry, ledger: Ledger, run_id: str) -> None:
    """A run uses nothing any more, and what only it held may go. Raises `OSError`."""
    holder = f"run:{run_id}"
    query = (
        select(AssetRow.run_id)
        .join(HoldRow, (HoldRow.kind == AssetRow.kind) & (HoldRow.asset_id == AssetRow.id))
        .where(HoldRow.holder == holder, AssetRow.kind == CHECKPOINT, AssetRow.run_id.is_not(None))
    )
    owners = {owner for owner in session.scalars(query).all() if owner is not None}
    registry.release(session, holder)
    for owner in sorted(owners):
        refresh_kept(session, registry, ledger, owner)


def read_kept(run_dir: RunDir) -> Kept:
    """What `kept.json` says; nothing where it is not there or cannot be read."""
    try:
        value = read_json(run_dir.kept)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _wanted(session: Session, registry: Registry, run_id: str) -> Kept:
    wanted: Kept = {}
    for row in registry.listed(session, [CHECKPOINT], run_id):
        reasons = registry.holders(session, CHECKPOINT, row.id)
        if row.facts.get(PINNED):
            reasons = [PINNED, *reasons]
        if reasons and row.path:
            wanted[Path(row.path).name] = sorted(reasons)
    return wanted


def _write(run_dir: RunDir, wanted: Kept) -> None:
    try:
        with exclusive(run_dir.checkpoints_lock):
            write_json(run_dir.kept, wanted)
    except OSError:
        # The commit stands. The file keeps too much until the next time, which harms nobody.
        log.exception("what run %s keeps could not be written", run_dir.root.name)
