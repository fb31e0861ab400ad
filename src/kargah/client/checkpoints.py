"""Checkpoints: their lineage and files, runs that go on from them, and which of them stay."""

import os
from pathlib import Path
from typing import Any

from kargah.client import routes
from kargah.client.connection import Connection
from kargah.client.records import Asset, Freed
from kargah.client.run_records import CheckpointDetails, Pruned, RunState
from kargah.client.saving import Told, save

AssetList = list[Asset]


class Checkpoints:
    """`client.checkpoints`: what training left on storage."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, *, run_id: str | None = None) -> AssetList:
        """Checkpoints, newest first; of one run if it is named."""
        return self._connection.data(routes.CHECKPOINTS, AssetList, query={"runId": run_id})

    def get(self, checkpoint_id: str) -> CheckpointDetails:
        """One checkpoint: its files, where it comes from, and what came from it. Raises `NotFound`, `Conflict`
        (`MODEL_DAMAGED`)."""
        return self._connection.data(routes.CHECKPOINT, CheckpointDetails, checkpoint_id=checkpoint_id)

    def download(
        self,
        checkpoint_id: str,
        *,
        to: str | os.PathLike[str] = ".",
        file: str | None = None,
        training: bool = False,
        on_progress: Told | None = None,
    ) -> Path:
        """A checkpoint as a zip that `from_pretrained` loads once it is unpacked, or one `file` of it; in a folder,
        under the name that the server gives it. Returns where it is. `training` adds what a run needs to go on from it.

        `on_progress` is told the bytes that are here and how many there are. A single file goes on after a broken
        connection, a zip begins again; what stood there is replaced by the whole or not at all. Raises `NotFound`,
        `Conflict` (`MODEL_DAMAGED`), `OSError`.
        """
        query = {"file": file, "training": "true" if training else None}
        place = routes.DOWNLOAD_CHECKPOINT.at(checkpoint_id=checkpoint_id)
        return save(self._connection, place, query, to, on_progress)

    def restore(self, checkpoint_id: str, *, name: str | None = None) -> RunState:
        """A new run that goes on from a checkpoint exactly as its own run did. Never asked twice by itself.

        Raises `NotFound`, and `Conflict`: `ASSET_NOT_READY` for what the run used and is not held any more,
        `DATA_CHANGED`, `MODEL_DAMAGED`.
        """
        body = {} if name is None else {"name": name}
        return self._connection.data(routes.RESTORE_CHECKPOINT, RunState, body=body, checkpoint_id=checkpoint_id)

    def pin(self, checkpoint_id: str) -> Asset:
        """Let a checkpoint stay whatever the limits say."""
        return self._pin(checkpoint_id, True)

    def unpin(self, checkpoint_id: str) -> Asset:
        """Let the limits decide about a checkpoint again."""
        return self._pin(checkpoint_id, False)

    def prune(
        self, run_id: str | None = None, *, keep_last: int = 1, keep_best: bool = True, dry_run: bool = False
    ) -> Pruned:
        """Remove, of one run or of each, all but the newest `keep_last`, the best if `keep_best`, and what is pinned,
        held, or needed by a run that has not ended. With `dry_run` only tell what would go."""
        body: dict[str, Any] = {"keepLast": keep_last, "keepBest": keep_best, "dryRun": dry_run}
        body |= {} if run_id is None else {"runId": run_id}
        return self._connection.data(routes.PRUNE_CHECKPOINTS, Pruned, body=body)

    def delete(self, checkpoint_id: str) -> Freed:
        """Delete one and give its space back. Raises `Conflict` (`IN_USE`); its `details` say what needs it."""
        return self._connection.data(routes.DELETE_CHECKPOINT, Freed, checkpoint_id=checkpoint_id)

    def _pin(self, checkpoint_id: str, pinned: bool) -> Asset:
        body = {"pinned": pinned}
        return self._connection.data(routes.PIN_CHECKPOINT, Asset, body=body, checkpoint_id=checkpoint_id)
