"""What the database knows and no file does, of runs from before their records were kept: written once."""

import logging
from collections import defaultdict
from pathlib import Path

from sqlalchemy import select

from kargah.assets.models import AssetRow
from kargah.ground.db import Database
from kargah.runs.checkpoint_ids import checkpoint_id, keep_odd_ids
from kargah.runs.ledger import attempts_of, record_of
from kargah.runs.models import RunRow
from kargah.spec.layout import RunDir, write_json

log = logging.getLogger(__name__)


def write_missing_records(database: Database, runs: Path) -> int:
    """Write the record of every run that has a directory and no record, and ids of checkpoints made by chance.

    Returns how many records these were. A disk that refuses them is asked again at the next start.
    """
    num_written = 0
    with database.read() as session:
        columns = select(AssetRow.id, AssetRow.run_id, AssetRow.path).where(AssetRow.kind == "checkpoint")
        odd: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for asset_id, run_id, path in session.execute(columns):
            name = Path(path or "").name
            if run_id is not None and asset_id != checkpoint_id(run_id, name):
                odd[run_id][name] = asset_id
        try:
            for run_id in session.scalars(select(RunRow.id)).all():
                run_dir = RunDir(runs / run_id)
                if run_dir.root.is_dir() and not run_dir.record.exists():
                    run = session.get_one(RunRow, run_id)
                    write_json(run_dir.record, record_of(run, attempts_of(session, run_id)))
                    num_written += 1
            for run_id, ids in odd.items():
                if (runs / run_id).is_dir():
                    keep_odd_ids(RunDir(runs / run_id), ids)
        except OSError:
            log.exception("records of runs could not be written")
    return num_written
