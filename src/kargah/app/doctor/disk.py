"""The disk under `KARGAH_HOME`: speed, the price of an fsync, free space, and its file system.

All files stand in one hidden folder that is removed again; the large one has no name from its first byte on, so that
not even a kill leaves it behind. What several processes share there is `sharing`'s.
"""

import contextlib
import fcntl
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kargah.app.doctor.findings import Examination, Facts, unmeasured
from kargah.app.doctor.sharing import examine_sharing
from kargah.ground.settings import Settings
from kargah.text.languages import Language
from kargah.text.sizes import human_size

MIN_FREE_BYTES = 5_000_000_000
SLOW_FSYNC_SECONDS = 0.1
NETWORK_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "afp",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "gluster",
    "fuse.sshfs",
    "webdav",
    "davfs",
)
_BLOCK_BYTES = 4 * 1024 * 1024
_SMALL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class DiskBudget:
    """How much a measure may write, and how long it may take."""

    file_bytes: int
    num_small_files: int
    seconds: float


FULL = DiskBudget(file_bytes=256 * 1024 * 1024, num_small_files=64, seconds=8.0)
QUICK = DiskBudget(file_bytes=8 * 1024 * 1024, num_small_files=8, seconds=2.0)


def examine_disk(settings: Settings, language: Language, budget: DiskBudget) -> Examination:
    """Everything about the disk; nothing but its space when it cannot be written."""
    found = Examination(language)
    place, is_there = _place(settings.home)
    usage = shutil.disk_usage(place)
    found.facts = {
        "homeExists": is_there,
        "fileSystem": _file_system(place),
        "freeBytes": usage.free,
        "totalBytes": usage.total,
        "isWritable": True,
    }
    if found.facts["fileSystem"] is None:
        unmeasured(found.facts, "fileSystem", "the system does not tell")
    try:
        with _scratch(place) as scratch:
            _measure_sequential(scratch, budget, found.facts)
            _measure_small_files(scratch, budget, found.facts)
            _tell_speed(found)
            sharing = examine_sharing(
                scratch, language, uses_sqlite=settings.effective_database_url.startswith("sqlite")
            )
            found.facts["sharing"] = sharing.facts
            found.findings += sharing.findings
    except OSError as error:
        found.facts["isWritable"] = False
        found.facts["writeProblem"] = error.strerror or type(error).__name__
        found.find("disk", "error", "disk.notWritable", path="KARGAH_HOME", problem=found.facts["writeProblem"])
    return found


def _tell_speed(found: Examination) -> None:
    facts = found.facts
    few = facts["freeBytes"] < MIN_FREE_BYTES
    found.find(
        "disk", "warning" if few else "ok", "disk.few" if few else "disk.free", size=human_size(facts["freeBytes"])
    )
    if facts["writeBytesPerSecond"] is not None and facts["readBytesPerSecond"] is not None:
        speeds = {name: f"{human_size(int(facts[f'{name}BytesPerSecond']))}/s" for name in ("write", "read")}
        found.find("disk", "ok", "disk.speed", **speeds, latency=f"{facts['fsyncP95Seconds'] * 1000:.1f} ms")
    if facts["fsyncP95Seconds"] > SLOW_FSYNC_SECONDS:
        found.find("disk", "warning", "disk.slowFsync", latency=f"{facts['fsyncP95Seconds'] * 1000:.0f} ms")
    system = facts["fileSystem"]
    if system is not None and system.lower().startswith(NETWORK_SYSTEMS):
        found.find("disk", "warning", "disk.network", system=system)


def _place(home: Path) -> tuple[Path, bool]:
    """The data directory, or the nearest folder above it that exists: nothing is made that a server would make."""
    place = home
    while not place.exists():
        place = place.parent
    return place, place == home


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A hidden folder, and nothing of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".kargah-doctor-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure_sequential(scratch: Path, budget: DiskBudget, facts: Facts) -> None:
    """Write and fsync one large file, and read it again. The page cache is asked to forget it, and may not."""
    facts |= {"sequentialBytes": 0, "readCacheDropped": False}
    wanted = min(budget.file_bytes, facts["freeBytes"] // 4) // _BLOCK_BYTES * _BLOCK_BYTES
    if wanted == 0:
        for name in ("writeBytesPerSecond", "readBytesPerSecond"):
            unmeasured(facts, name, "too little free space")
        return
    path = scratch / "sequential"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        path.unlink()
        # Random, for some file systems compress.
        block = os.urandom(_BLOCK_BYTES)
        written, begun = 0, time.perf_counter()
        while written < wanted and time.perf_counter() - begun < budget.seconds:
            written += os.write(handle, block)
        os.fsync(handle)
        facts["writeBytesPerSecond"] = written / (time.perf_counter() - begun)
        facts["sequentialBytes"] = written
        facts["readCacheDropped"] = _drop_cache(handle)
        os.lseek(handle, 0, os.SEEK_SET)
        read, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < budget.seconds and (content := os.read(handle, _BLOCK_BYTES)):
            read += len(content)
        facts["readBytesPerSecond"] = read / (time.perf_counter() - begun)
    finally:
        os.close(handle)


def _drop_cache(handle: int) -> bool:
    """Ask the system to forget what it keeps of a file. Whether it could be asked."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return True
    if sys.platform == "darwin":
        fcntl.fcntl(handle, fcntl.F_NOCACHE, 1)
        return True
    return False


def _measure_small_files(scratch: Path, budget: DiskBudget, facts: Facts) -> None:
    """Seconds to make a file of 4 KiB durable: create, write, fsync, close."""
    content = os.urandom(_SMALL_BYTES)
    seconds: list[float] = []
    for number in range(budget.num_small_files):
        begun = time.perf_counter()
        handle = os.open(scratch / f"small-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
        seconds.append(time.perf_counter() - begun)
        if len(seconds) > 1 and sum(seconds) > budget.seconds:
            break
    percentiles = statistics.quantiles(seconds, n=20, method="inclusive")
    facts |= {
        "numSmallFiles": len(seconds),
        "fsyncP50Seconds": statistics.median(seconds),
        "fsyncP95Seconds": percentiles[-1],
    }


def _file_system(place: Path) -> str | None:
    """The type of the file system a folder stands on, such as `ext4` or `nfs4`."""
    best: tuple[int, str] | None = None
    partitions: list[Any] = []
    with contextlib.suppress(OSError):
        partitions = psutil.disk_partitions(all=True)
    resolved = place.resolve()
    for partition in partitions:
        mount = Path(partition.mountpoint)
        # Of two mounts on one place the later one lies on top.
        if resolved.is_relative_to(mount) and (best is None or len(mount.parts) >= best[0]):
            best = len(mount.parts), partition.fstype
    return best[1] or None if best is not None else None
