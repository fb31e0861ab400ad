"""What downloads need of the disk: room before they begin, and what ended ones left behind."""

import shutil
import time
from collections.abc import Collection
from pathlib import Path

from kargah.assets import blobs
from kargah.ground.home import Home
from kargah.hub.plan import PLAN

DAY_SECONDS = 24 * 3600


def held_bytes(home: Home, folder: Path) -> int:
    """Bytes that an earlier try of the download in `folder` left, and a new one need not fetch."""
    digests = blobs.wanted_digests([folder / PLAN])
    return sum(path.stat().st_size for path in blobs.held_paths(home, digests))


def discard(home: Home, folder: Path) -> int:
    """Throw away a download's folder and what only it wanted. Returns the bytes given back."""
    return remove_folder(folder) + blobs.sweep(home)


def remove_folder(folder: Path) -> int:
    """Throw away a download's folder alone. Returns the bytes given back."""
    freed = blobs.exclusive_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return freed


def expire(home: Home, keep_days: float, unfinished: Collection[str]) -> int:
    """Throw away what ended downloads left `keep_days` ago, and parts and blobs that nothing wanted for as long.

    `unfinished` are the folders of downloads that are not over. Returns the bytes given back.
    """
    before = time.time() - keep_days * DAY_SECONDS
    freed = 0
    for folder in home.downloads.iterdir():
        if folder.is_dir() and folder.name not in unfinished and _touched_at(home, folder) < before:
            freed += remove_folder(folder)
    return freed + blobs.sweep(home, older_than=before)


def _touched_at(home: Home, folder: Path) -> float:
    """When the download last did anything: its own files, or a byte that came for it."""
    files = [path for path in folder.iterdir() if path.is_file()]
    digests = blobs.wanted_digests([folder / PLAN])
    parts = [path for path in blobs.held_paths(home, digests) if path.suffix == ".part"]
    return max((path.stat().st_mtime for path in [*files, *parts]), default=0.0)
