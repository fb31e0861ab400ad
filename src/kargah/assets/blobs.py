"""The blob store as the registry sees it: contents by digest, hard-linked into snapshots, given back when unused.

Layout: `blobs/<algorithm>-<first two hex digits>/<hex>` for verified contents, `blobs/parts/` for what is on its way.
"""

from typing import Any

from kargah.ground.home import Home
from kargah.spec.layout import read_json


def sweep(home: Home) -> int:
    """Delete blobs that no snapshot links to and parts, unless a download wants them. Returns the bytes given back."""
    wanted = _wanted(home)
    freed = 0
    for path in home.blobs.glob("*-??/*"):
        info = path.stat()
        if info.st_nlink == 1 and f"{path.parent.name[:-3]}:{path.name}" not in wanted:
            path.unlink()
            freed += info.st_size
    for path in home.blobs.glob("parts/*"):
        algorithm, _, hexdigits = path.stem.rpartition("-")
        if f"{algorithm}:{hexdigits}" not in wanted:
            freed += path.stat().st_size
            path.unlink()
    return freed


def _wanted(home: Home) -> set[str]:
    """Digests that the plans of unfinished downloads name."""
    wanted: set[str] = set()
    for file in home.downloads.glob("*/plan.json"):
        try:
            plan: Any = read_json(file)
            wanted.update(entry["digest"] for entry in plan["files"])
        except (ValueError, KeyError, TypeError):
            continue
    return wanted
