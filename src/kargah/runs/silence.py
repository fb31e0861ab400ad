"""How long a living program has said nothing: neither written to its journal nor touched its heartbeat.

Measured by the server's own clock from the moment it saw the last sign on, so a machine that slept, or a clock that was
set, makes nobody look silent.
"""

import time
from pathlib import Path

from kargah.spec.layout import AttemptDir


class Silence:
    """Remembers the last sign of each attempt."""

    def __init__(self) -> None:
        self._signs: dict[Path, tuple[tuple[int, ...], float]] = {}

    def listen(self, attempt: AttemptDir) -> tuple[float, bool]:
        """Seconds since the last sign that was seen of this attempt, and whether there was one since the last look.

        Looked at for the first time, it is neither silent nor known to have spoken.
        """
        sign = tuple(_changed_at(path) for path in (attempt.journal, attempt.heartbeat))
        known = self._signs.get(attempt.root)
        now = time.monotonic()
        if known is None or known[0] != sign:
            self._signs[attempt.root] = (sign, now)
            return 0.0, known is not None
        return now - known[1], False

    def forget(self, attempt: AttemptDir) -> None:
        """The attempt is over."""
        self._signs.pop(attempt.root, None)


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
