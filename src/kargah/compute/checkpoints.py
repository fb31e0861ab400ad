"""Checkpoints on disk: written beside their place and renamed, verified before use, removed by rename first.

A checkpoint folder is a plain model folder (`from_pretrained` loads it) that also holds what a resumed run needs:
`optimizer.pt`, `scheduler.pt`, `rng_state.pth`, `trainer_state.json`, `hooks.json`, `spec.json` and `manifest.json`
(step, epoch, metrics, labels, and the digest of every file). A folder whose name begins with a dot is half written or
half removed and means nothing.
"""

import math
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kargah.compute.hooks import StateWriter
from kargah.spec.journal import finite
from kargah.spec.layout import SPEC, checkpoint_name, checkpoint_step, fsync_folder, write_json
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


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, spec: RunSpec, labels: list[str], write_state: StateWriter
) -> int:
    """Write a checkpoint into `folder` and make it durable. Returns its size in bytes. Raises `OSError`.

    One of the same name, left by an earlier attempt, is replaced.
    """
    partial = folder / f".{checkpoint.name}{_PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_state(partial)
        write_json(partial / SPEC, spec.to_json())
        size_bytes = write_manifest(
            partial,
            step=checkpoint.step,
            epoch=checkpoint.epoch,
            metrics=finite(checkpoint.metrics),
            labels=labels,
        )
        _settle_tree(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    remove_checkpoint(folder, checkpoint.name)
    os.rename(partial, folder / checkpoint.name)
    fsync_folder(folder)
    return size_bytes


def remove_checkpoint(folder: Path, name: str) -> None:
    """Remove a checkpoint so that nobody ever sees half of it; harmless when there is none."""
    doomed = folder / f".{name}.removed{_PARTIAL}"
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.rename(folder / name, doomed)
    except FileNotFoundError:
        return
    fsync_folder(folder)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what a killed attempt left half written or half removed. Returns the names."""
    names = sorted(path.name for path in folder.glob(f".step-*{_PARTIAL}"))
    for name in names:
        shutil.rmtree(folder / name)
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
