"""Where things stand inside a run directory, and how a file is replaced there without ever being half written."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPEC = "spec.json"
CONTROL = "control.json"
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run. A run directory is always on a local disk."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / SPEC

    @property
    def control(self) -> Path:
        return self.root / CONTROL

    @property
    def lock(self) -> Path:
        return self.root / LOCK

    @property
    def record(self) -> Path:
        """What the server knows of the run and no journal says: ids, state, wish, place (`kargah.runs.ledger`)."""
        return self.root / "record.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def checkpoints_lock(self) -> Path:
        """Held by whoever removes checkpoints of the run or changes `kept`."""
        return self.root / "checkpoints.lock"

    @property
    def kept(self) -> Path:
        """Checkpoints that must stay whatever the run's own limit says: `{"step-00000120": ["pinned", …], …}`."""
        return self.root / "kept.json"

    def attempt(self, number: int) -> "AttemptDir":
        """The directory of attempt `number`, counted from 1."""
        return AttemptDir(self.root / "attempts" / str(number))

    def attempt_numbers(self) -> list[int]:
        """Numbers of the attempts that left a directory, growing."""
        folder = self.root / "attempts"
        if not folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


@dataclass(frozen=True, slots=True)
class AttemptDir:
    """Paths of one attempt of a run."""

    root: Path

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def exit(self) -> Path:
        return self.root / "exit.json"

    @property
    def output(self) -> Path:
        return self.root / "output.log"

    @property
    def heartbeat(self) -> Path:
        """An empty file whose time of change says when the program last got on with its work."""
        return self.root / "heartbeat"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint of optimiser step `step`: `step-00000120`."""
    return f"step-{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step a checkpoint folder's name says, or None when it is not such a name (a half-written one is not)."""
    prefix, _, digits = name.partition("-")
    return int(digits) if prefix == "step" and digits.isdigit() and len(digits) == 8 else None


def write_json(path: Path, value: Any, reserve: Path | None = None) -> None:
    """Replace `path` by `value` as UTF-8 JSON: written beside it, fsynced, renamed. Raises `OSError`.

    `reserve` is a file beside `path` that may be used up: written over, so that no new room on the disk is needed.
    """
    reserved = reserve is not None and reserve.is_file()
    partial = reserve if reserve is not None and reserved else path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "r+" if reserved else "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    fsync_folder(path.parent)


def read_json(path: Path) -> Any | None:
    """The JSON value in `path`, or None when there is no such file. Raises `ValueError` when it is not JSON."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return json.loads(text)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
