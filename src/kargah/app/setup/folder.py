"""A folder of wheels: its `SHA256SUMS` (the format of `sha256sum`), what in it is damaged, and what it lacks."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from kargah.app.setup.environment import Surroundings
from kargah.app.setup.errors import WheelsDamaged, WheelsUnusable
from kargah.app.setup.fetching import is_sound
from kargah.app.setup.goal import Goal
from kargah.spec.layout import fsync_folder

SUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$")
_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Missing:
    """A requirement that no wheel of a folder meets, and the wheels of that name that do not."""

    requirement: str
    found: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.requirement} ({', '.join(self.found)})" if self.found else self.requirement


def read_sums(folder: Path) -> dict[str, str]:
    """Digest by file name; empty when there is no such file. Raises `WheelsUnusable`."""
    try:
        text = (folder / SUMS_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WheelsUnusable(path=str(folder), problem=error.strerror or str(error)) from error
    matches = (_LINE.match(line.rstrip("\r")) for line in text.splitlines())
    return {match[2]: match[1] for match in matches if match}


def write_sums(folder: Path, digests: Mapping[str, str]) -> None:
    """Add digests to those of the wheels that are there already."""
    kept = {name: digest for name, digest in read_sums(folder).items() if (folder / name).is_file()}
    lines = [f"{digest}  {name}\n" for name, digest in sorted({**kept, **digests}.items())]
    partial = folder / f".{SUMS_FILE}.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(folder / SUMS_FILE)
    fsync_folder(folder)


def wheels_in(folders: Iterable[Path]) -> list[Path]:
    """Every wheel. Raises `WheelsUnusable`."""
    found: list[Path] = []
    for folder in folders:
        try:
            found += sorted(path for path in folder.iterdir() if path.suffix == ".whl" and path.name[0] != ".")
        except OSError as error:
            raise WheelsUnusable(path=str(folder), problem=error.strerror or str(error)) from error
    return found


def verify(folders: Sequence[Path], read: Callable[[int], None]) -> dict[str, str]:
    """The SHA-256 of every wheel by file name; a wheel that `SHA256SUMS` does not name is asked for its own checksums.
    `read` is told of bytes as they are read.

    Raises `WheelsDamaged` with the names of what is not as it was or not there any more, and `WheelsUnusable`.
    """
    digests: dict[str, str] = {}
    bad: list[str] = []
    for folder in folders:
        sums = read_sums(folder)
        present = {path.name: path for path in wheels_in([folder])}
        bad += [name for name in sums if name.endswith(".whl") and name not in present]
        for name, path in present.items():
            try:
                found = _digest(path, read)
            except OSError:
                # A stick that cannot be read has lost its file, whatever else is wrong with it.
                bad.append(name)
                continue
            if found == sums[name] if name in sums else is_sound(path):
                digests.setdefault(name, found)
            else:
                bad.append(name)
    if bad:
        raise WheelsDamaged(files=", ".join(bad))
    return digests


def lacking(goal: Goal, folders: Sequence[Path], surroundings: Surroundings, *, afresh: bool = False) -> list[Missing]:
    """What of the goal, and of all it requires in turn, neither is installed nor lies there for this machine; `afresh`
    counts nothing as installed.

    pip judges; this finds the words, for pip names one missing requirement and not whom the others' wheels are for.
    """
    offered: dict[str, list[_Offer]] = {}
    fitting = frozenset(sys_tags())
    for path in wheels_in(folders):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        offered.setdefault(name, []).append(_Offer(path, version, bool(tags & fitting)))
    missing: dict[str, Missing] = {}
    waiting = [Requirement(text) for text in goal.requirements]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen or (requirement.marker is not None and not requirement.marker.evaluate()):
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        installed = None if afresh else surroundings.versions.get(name)
        if installed is not None and requirement.specifier.contains(installed, prereleases=True):
            continue
        offers = offered.get(name, [])
        good = [
            offer for offer in offers if offer.fits and requirement.specifier.contains(offer.version, prereleases=True)
        ]
        if good:
            best = max(good, key=lambda offer: offer.version)
            waiting += _required(best.path, requirement.extras)
        else:
            asked = f"{requirement.name}{requirement.specifier}"
            missing[asked] = Missing(asked, tuple(offer.path.name for offer in offers))
    return sorted(missing.values(), key=str)


def this_machine() -> str:
    """What wheels are for this machine, in the words of their names, such as `cp311, manylinux_2_36_x86_64`."""
    first: Tag = next(iter(sys_tags()))
    return f"{first.interpreter}, {first.platform}"


@dataclass(frozen=True, slots=True)
class _Offer:
    path: Path
    version: Version
    fits: bool


def _required(path: Path, extras: Iterable[str]) -> list[Requirement]:
    """What a wheel requires here, its markers evaluated."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            headers = BytesParser().parsebytes(archive.read(name), headersonly=True)
    except (OSError, zipfile.BadZipFile, StopIteration):
        return []
    found = []
    for text in headers.get_all("Requires-Dist", []):
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
            requirement.marker = None
            found.append(requirement)
    return found


def _digest(path: Path, read: Callable[[int], None]) -> str:
    running = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            running.update(chunk)
            read(len(chunk))
    return running.hexdigest()
