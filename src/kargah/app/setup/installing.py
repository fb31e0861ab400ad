"""Putting wheels into the environment, without a network, and only those whose digests were found right."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kargah.app.setup.errors import InstallFailed, Unresolved
from kargah.app.setup.pip_program import Pip, Said
from kargah.app.setup.resolving import Wheel
from kargah.ground.errors import DiskFull

INSTALLED_RATIO, LARGE_RATIO = 4.5, 2.2
"""Bytes installed for each byte of a wheel that has not come yet. Measured with bytecode: torch for CPU and all it
needs 4.5; torch for CUDA 2.1. What is here is asked exactly before it is installed."""
LARGE_BYTES = 250_000_000
BYTECODE_RATIO = 1.4
"""What pip adds for each byte of source when it compiles. Measured: 1.3, and blocks that are not full."""
BLOCK_BYTES = 4096
MARGIN_BYTES = 256 * 1024 * 1024


def check_space(
    folder: Path | None, missing_bytes: int, site: Path | None, wheels: Sequence[Wheel], held: Sequence[Path]
) -> int:
    """Refuse to begin what the disk cannot hold. Returns the bytes needed.

    `folder` receives `missing_bytes` of wheels (None: nothing is fetched), `site` the installation (None: nothing is
    installed). A wheel among `held` says itself how large it is installed. Raises `DiskFull`.
    """
    sizes = {path.name: _unpacked_bytes(path) for path in held}
    installed = sum(sizes.get(wheel.file) or _estimated_bytes(wheel.size_bytes or 0) for wheel in wheels)
    needs: dict[int, tuple[Path, int]] = {}
    for place, needed in ((folder, missing_bytes), (site, installed if site else 0)):
        if place is not None and needed:
            nearest = _existing(place)
            device = os.stat(nearest).st_dev
            needs[device] = (nearest, needs.get(device, (nearest, 0))[1] + needed)
    for nearest, needed in needs.values():
        free = shutil.disk_usage(nearest).free
        if free < needed + MARGIN_BYTES:
            raise DiskFull(details={"neededBytes": needed + MARGIN_BYTES, "freeBytes": free, "path": str(nearest)})
    return sum(needed for _, needed in needs.values())


def install(
    pip: Pip,
    folders: Iterable[Path],
    wheels: Sequence[Wheel],
    digests: Mapping[str, str],
    said: Said,
    *,
    halves: Iterable[str],
    again: bool = False,
) -> None:
    """Install exactly `wheels` from `folders`, pip comparing `digests` (SHA-256 by file name) once more; with `again`
    also what is installed in that version already.

    A distribution among `halves` was broken off half-way: pip takes it for installed and cannot remove it, so it is
    written over. Raises `InstallFailed`.
    """
    broken = set(halves)
    source = ["--no-index", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    source += [part for folder in folders for part in ("--find-links", str(folder))]
    for options, chosen in (
        (["--ignore-installed"], [wheel for wheel in wheels if wheel.name in broken]),
        (["--force-reinstall"] if again else [], [wheel for wheel in wheels if wheel.name not in broken]),
    ):
        if not chosen:
            continue
        with tempfile.TemporaryDirectory() as place:
            exact = Path(place) / "wheels.txt"
            lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{digests[wheel.file]}\n" for wheel in chosen]
            exact.write_text("".join(lines), encoding="utf-8")
            try:
                pip.run("install", *source, *options, "--requirement", str(exact), said=said, alone=True)
            except Unresolved as failure:
                raise InstallFailed(problem=failure.params["problem"]) from failure


def _unpacked_bytes(path: Path) -> int:
    """What a wheel takes on disk once installed; 0 when it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile):
        return 0
    blocks = sum(-(-entry.file_size // BLOCK_BYTES) * BLOCK_BYTES for entry in entries)
    source = sum(entry.file_size for entry in entries if entry.filename.endswith(".py"))
    return blocks + int(BYTECODE_RATIO * source)


def _estimated_bytes(size_bytes: int) -> int:
    return int(size_bytes * (LARGE_RATIO if size_bytes > LARGE_BYTES else INSTALLED_RATIO))


def _existing(place: Path) -> Path:
    while not place.exists():
        place = place.parent
    return place
