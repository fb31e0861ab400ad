"""Checkpoints on disk: written beside their place and renamed, verified before use, removed by rename first.

A checkpoint folder is a plain model folder (`from_pretrained` loads it) that also holds what a resumed run needs:
`optimizer.pt`, `scheduler.pt`, `rng_state.pth`, `trainer_state.json`, `hooks.json`, `spec.json` and `manifest.json`
(step, epoch, metrics, labels, whose it is, and the digest of every file). A folder whose name begins with a dot is half
written or half removed and means nothing.

Folders change names and go only under the run's `checkpoints_lock`, for the server removes checkpoints too.
"""

import math
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kargah.compute.hooks import StateWriter
from kargah.spec.journal import finite
from kargah.spec.layout import SPEC, RunDir, checkpoint_name, checkpoint_step, fsync_folder, read_json, write_json
from kargah.spec.lock import exclusive
from kargah.spec.manifest import FolderDamaged, read_manifest, verify_folder, write_manifest
from kargah.spec.run_spec import RunSpec

_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is told of a checkpoint: where it stands, and its evaluation when it had one."""

    name: str
    step: int
    epoch: float
    metrics: dict[str, float]

    @property
    def rank(self) -> tuple[float, float] | None:
        """Order of goodness: accuracy first, then a low validation loss; None without an evaluation."""
        accuracy, val_loss = self.metrics.get("accuracy"), self.metrics.get("valLoss")
        if accuracy is None:
            return None
        return accuracy, -math.inf if val_loss is None or math.isnan(val_loss) else -val_loss


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a checkpoint comes from. The spec beside it names base model and data sets with their versions."""

    run_id: str
    attempt: int
    kargah_version: str
    versions: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """As the manifest has them."""
        return {
            "runId": self.run_id,
            "attempt": self.attempt,
            "kargahVersion": self.kargah_version,
            "versions": self.versions,
        }


def write_checkpoint(
    run_dir: RunDir,
    checkpoint: Checkpoint,
    spec: RunSpec,
    facts: dict[str, Any],
    write_state: StateWriter,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Write a checkpoint of the run and make it durable. Returns its size in bytes. Raises `OSError`.

    `facts` stand in its manifest too. `between` is called whenever the writing gets on. A checkpoint of the same name,
    left by an earlier attempt, is replaced.
    """
    folder = run_dir.checkpoints
    partial = folder / f".{checkpoint.name}{_PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_state(partial)
        between()
        write_json(partial / SPEC, spec.to_json())
        size_bytes = write_manifest(
            partial,
            step=checkpoint.step,
            epoch=checkpoint.epoch,
            metrics=finite(checkpoint.metrics),
            **facts,
        )
        between()
        _settle_tree(partial)
        between()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    with exclusive(run_dir.checkpoints_lock):
        remove_checkpoint(folder, checkpoint.name)
        os.rename(partial, folder / checkpoint.name)
        fsync_folder(folder)
    return size_bytes


def prune_checkpoints(run_dir: RunDir, num_kept: int, best: str | None, upto_step: int) -> list[Checkpoint]:
    """Remove checkpoints but the newest `num_kept` (one at least), the best, and those that `kept.json` lists.

    Those beyond `upto_step` are not touched and do not count. Returns what was removed. Raises `OSError`, and
    `ValueError` when `kept.json` cannot be understood: then nothing is removed.
    """

    def surplus() -> list[Checkpoint]:
        known = [checkpoint for checkpoint in list_checkpoints(run_dir.checkpoints) if checkpoint.step <= upto_step]
        return [checkpoint for checkpoint in known[: -max(1, num_kept)] if checkpoint.name != best]

    if not surplus():
        return []
    with exclusive(run_dir.checkpoints_lock):
        kept = _kept(run_dir)
        removed = [checkpoint for checkpoint in surplus() if checkpoint.name not in kept]
        for checkpoint in removed:
            remove_checkpoint(run_dir.checkpoints, checkpoint.name)
    return removed


def remove_checkpoint(folder: Path, name: str) -> None:
    """Remove a checkpoint so that nobody ever sees half of it; harmless when there is none.

    Its caller holds the run's `checkpoints_lock`.
    """
    doomed = folder / f".{name}.removed{_PARTIAL}"
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.rename(folder / name, doomed)
    except FileNotFoundError:
        return
    fsync_folder(folder)
    shutil.rmtree(doomed)


def remove_leftovers(run_dir: RunDir) -> list[str]:
    """Remove what a killed attempt left half written or half removed. Returns the names."""
    with exclusive(run_dir.checkpoints_lock):
        names = sorted(path.name for path in run_dir.checkpoints.glob(f".step-*{_PARTIAL}"))
        for name in names:
            shutil.rmtree(run_dir.checkpoints / name)
    return names


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Checkpoints with a readable manifest, oldest first. Their files are not looked at."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if checkpoint_step(path.name) is not None:
            try:
                found.append(_read(path))
            except FolderDamaged:
                continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_sound(folder: Path) -> tuple[Checkpoint | None, list[FolderDamaged]]:
    """The newest checkpoint that holds what its manifest says, and what was wrong with those newer than it."""
    steps = [checkpoint_step(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    damages: list[FolderDamaged] = []
    for step in sorted((step for step in steps if step is not None), reverse=True):
        path = folder / checkpoint_name(step)
        try:
            verify_folder(path)
            return _read(path), damages
        except FolderDamaged as damage:
            damages.append(damage)
    return None, damages


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint anywhere, verified. Raises `FolderDamaged`."""
    verify_folder(path)
    return _read(path)


def _kept(run_dir: RunDir) -> set[str]:
    try:
        value = read_json(run_dir.kept)
    except OSError as error:
        raise ValueError(f"{run_dir.kept.name} cannot be read") from error
    if not isinstance(value, dict | None):
        raise ValueError(f"{run_dir.kept.name} is no object")
    return set(value or {})


def _read(path: Path) -> Checkpoint:
    manifest: dict[str, Any] = read_manifest(path)
    step = manifest.get("step")
    if not isinstance(step, int):
        raise FolderDamaged(path, "manifest.json", "names no step")
    metrics = {name: value for name, value in manifest.get("metrics", {}).items() if isinstance(value, float | int)}
    return Checkpoint(path.name, step, float(manifest.get("epoch", 0.0)), metrics)


def _settle_tree(folder: Path) -> None:
    # safetensors makes files that their owner alone can read; the others follow the umask, and so shall they all.
    mode = stat.S_IMODE((folder / SPEC).stat().st_mode)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(mode)
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        elif path.is_dir():
            fsync_folder(path)
    fsync_folder(folder)
