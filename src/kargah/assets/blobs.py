"""The blob store as the registry sees it: contents by digest, hard-linked into snapshots, given back when unused.

Layout: `blobs/<algorithm>-<first two hex digits>/<hex>` for verified contents, `blobs/parts/` for what is on its way.
What the plan of a download names (`downloads/*/plan.json`) is wanted, and never given back.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kargah.ground.home import Home
from kargah.spec.layout import read_json

PLANS = "*/plan.json"


def sweep(home: Home, *, older_than: float | None = None) -> int:
    """Delete blobs that no snapshot links to and parts, unless a download wants them. Returns the bytes given back.

    `older_than` (seconds since 1970) spares what was written later.
    """
    # Candidates first: what a download adds meanwhile is none, and a plan is written before its first part.
    found = [(path, f"{path.parent.name[:-3]}:{path.name}") for path in home.blobs.glob("*-??/*")]
    found += [(path, ":".join(path.stem.rsplit("-", 1))) for path in home.blobs.glob("parts/*")]
    wanted = wanted_digests(home.downloads.glob(PLANS))
    freed = 0
    for path, digest in found:
        if digest in wanted:
            continue
        try:
            info = path.stat()
            if info.st_nlink == 1 and (older_than is None or info.st_mtime < older_than):
                path.unlink()
                freed += info.st_size
        except FileNotFoundError:
            # A part that just became a blob.
            continue
    return freed


def wanted_digests(plans: Iterable[Path]) -> set[str]:
    """Digests that plans name."""
    wanted: set[str] = set()
    for file in plans:
        try:
            plan: Any = read_json(file)
            wanted.update(entry["digest"] for entry in plan["files"])
        except (ValueError, KeyError, TypeError):
            continue
    return wanted


def held_paths(home: Home, digests: Iterable[str]) -> list[Path]:
    """Blobs and parts of `digests` that are here."""
    found = []
    for digest in digests:
        algorithm, _, hexdigits = digest.partition(":")
        for path in (
            home.blobs / f"{algorithm}-{hexdigits[:2]}" / hexdigits,
            home.blobs / "parts" / f"{algorithm}-{hexdigits}.part",
        ):
            if path.is_file():
                found.append(path)
    return found


def exclusive_bytes(folder: Path) -> int:
    """What deleting `folder` gives back: files that are linked from nowhere else, each content once."""
    links: dict[tuple[int, int], list[os.stat_result]] = {}
    for base, _, names in os.walk(folder):
        for name in names:
            info = os.lstat(os.path.join(base, name))
            links.setdefault((info.st_dev, info.st_ino), []).append(info)
    return sum(infos[0].st_size for infos in links.values() if infos[0].st_nlink == len(infos))
