"""What the database knows and no file does, of runs from before their records were kept: written once."""

from collections import defaultdict
from pathlib import Path

from sqlalchemy import select

from kargah.assets.models import AssetRow
from kargah.ground.db import Database
from kargah.runs.checkpoint_ids import checkpoint_id, keep_odd_ids
from kargah.runs.ledger import attempts_of, read_record, record_of
from kargah.runs.models import RunRow
from kargah.spec.layout import RunDir, write_json


def write_missing_records(database: Database, runs: Path, *, also_changed: bool = False) -> int:
    """Write the record of every run that has a directory and no record, and ids of checkpoints made by chance.

    With `also_changed` those too that do not say what the database says. Returns how many records these were. Raises
    `OSError` when the disk refuses one.
    """
    num_written = 0
    with database.read() as session:
        columns = select(AssetRow.id, AssetRow.run_id, AssetRow.path).where(AssetRow.kind == "checkpoint")
        odd: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for asset_id, run_id, path in session.execute(columns):
            name = Path(path or "").name
            if run_id is not None and asset_id != checkpoint_id(run_id, name):
                odd[run_id][name] = asset_id
        for run_id in session.scalars(select(RunRow.id)).all():
            run_dir = RunDir(runs / run_id)
            if not run_dir.root.is_dir() or (run_dir.record.exists() and not also_changed):
                continue
            run = session.get_one(RunRow, run_id)
            record = record_of(run, attempts_of(session, run_id))
            if read_record(run_dir) != record:
                write_json(run_dir.record, record)
                num_written += 1
        for run_id, ids in odd.items():
            if (runs / run_id).is_dir():
                keep_odd_ids(RunDir(runs / run_id), ids)
    return num_written
