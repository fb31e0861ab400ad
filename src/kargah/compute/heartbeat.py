"""The sign of life of an attempt that gets on: a file's time of change, set by the work itself. Standard library only.

No thread of its own sets it, for that would go on while the work hangs.
"""

import os
import time
from pathlib import Path

EVERY_SECONDS = 1.0


class Heartbeat:
    """Touches `path` when the work gets on, at most once a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_at = 0.0

    def beat(self) -> None:
        """The work got on. Cheap enough for every batch. Raises `OSError`."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + EVERY_SECONDS
        try:
            os.utime(self._path)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
