"""Where things stand below `KARGAH_HOME`, and the lock that says one server works on it."""

import os
import shutil
from pathlib import Path

from kargah.ground.errors import CannotStart, HomeInUse
from kargah.spec.lock import FileLock, LockHeld, holder_pid

RESERVE_BYTES = 8 * 1024 * 1024
RESERVE_BELOW_BYTES = 64 * 1024 * 1024
"""With less free than this no reserve is taken: then the room is needed now."""


class HomeUnusable(CannotStart):
    """The data directory cannot be made or written."""

    code = "HOME_UNUSABLE"


class Home:
    """The data directory of one installation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.models = root / "models"
        self.datasets = root / "datasets"
        self.downloads = root / "downloads"
        self.uploads = root / "uploads"
        self.runs = root / "runs"
        self.backups = root / "backups"
        self._reserve = root / "reserve"
        self._lock = FileLock(root / "server.lock")

    def prepare(self) -> None:
        """Make the folders. Raises `HomeUnusable`."""
        try:
            for folder in (
                self.blobs,
                self.models,
                self.datasets,
                self.downloads,
                self.uploads,
                self.runs,
                self.backups,
            ):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK):
                raise PermissionError("not writable")
        except OSError as error:
            raise HomeUnusable(path=str(self.root), problem=error.strerror or str(error)) from error

    def claim(self) -> None:
        """Become the one server on this directory, until the process ends. Raises `HomeInUse`."""
        try:
            self._lock.acquire()
        except LockHeld as held:
            raise HomeInUse(path=str(self.root), pid=str(held.pid)) from held

    def release(self) -> None:
        """Give the directory back."""
        self._lock.release()

    def server_pid(self) -> int | None:
        """The process of the server that works on this directory, if one does. Not for that server itself."""
        return holder_pid(self._lock.path)

    def take_reserve(self) -> None:
        """Keep a little room for the database's last words on a full disk; where there is plenty, if it was given."""
        if not self._reserve.exists() and self.free_bytes() > RESERVE_BELOW_BYTES:
            self._reserve.write_bytes(b"\0" * RESERVE_BYTES)

    def give_reserve(self) -> None:
        """The disk is full: give the reserved room to whoever has to write."""
        self._reserve.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Free space on the disk that holds the directory."""
        return shutil.disk_usage(self.root).free


def folder_name(hub_id: str) -> str:
    """A hub id as one folder name: `org/name` → `org--name`."""
    return hub_id.replace("/", "--")


def disk_bytes(folders: list[Path]) -> int:
    """What `folders` hold on disk: hard-linked and repeated files counted once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder in folders:
        for base, _, names in os.walk(folder):
            for name in names:
                info = os.lstat(os.path.join(base, name))
                if (info.st_dev, info.st_ino) not in seen:
                    seen.add((info.st_dev, info.st_ino))
                    total += info.st_size
    return total
