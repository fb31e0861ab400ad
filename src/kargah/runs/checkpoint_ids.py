"""Ids of checkpoints: made of the run's id and the checkpoint's name, so that they can be made again from the files.

Checkpoints from before that had ids by chance keep them: `checkpoints.json` in the run directory has these by name.
"""

import hashlib

from kargah.spec.layout import RunDir, read_json, write_json


def checkpoint_id(run_id: str, name: str) -> str:
    """The id of the checkpoint `name` (`step-00000120`) of a run: 32 hex digits."""
    return hashlib.blake2b(f"{run_id}/{name}".encode(), digest_size=16).hexdigest()


def odd_ids(run_dir: RunDir) -> dict[str, str]:
    """Ids by name of those checkpoints whose id is another than `checkpoint_id`."""
    try:
        value = read_json(run_dir.root / "checkpoints.json")
    except ValueError:
        return {}
    return {str(name): str(one) for name, one in value.items()} if isinstance(value, dict) else {}


def keep_odd_ids(run_dir: RunDir, ids: dict[str, str]) -> None:
    """Keep such ids beside those that are kept already. Raises `OSError`."""
    known = odd_ids(run_dir)
    if not ids.items() <= known.items():
        write_json(run_dir.root / "checkpoints.json", {**known, **ids})
