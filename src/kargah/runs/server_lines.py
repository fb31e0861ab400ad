"""What the server itself said in a run's log, kept beside the attempt's journal as `server.jsonl`.

No journal has these lines. Each names the byte of the journal behind which it was said, so that a log that is made
again from the files has them in their places.
"""

import json
import logging
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from kargah.ground.db import after_commit
from kargah.ground.ids import parse_rfc3339, rfc3339
from kargah.runs.ledger import Ledger
from kargah.runs.models import AttemptRow
from kargah.spec.layout import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerLine:
    """One line. `offset` is the byte of the journal behind which it was said; `at` is RFC 3339."""

    at: str
    offset: int
    level: str
    message: str
    key: str
    details: dict[str, Any]

    @property
    def timestamp(self) -> datetime:
        return parse_rfc3339(self.at)


class ServerLines:
    """Keeps the lines of this server."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._late: list[tuple[Path, str]] = []

    def keep(
        self,
        session: Session,
        attempt: AttemptRow,
        level: str,
        message: str,
        key: str,
        details: dict[str, Any],
        at: datetime,
    ) -> None:
        """Keep a line once the transaction of `session`, which puts it into the log, is committed."""
        line = ServerLine(rfc3339(at) or "", attempt.journal_offset or 0, level, message, key, details)
        run_dir = self._ledger.run_dir(attempt.run_id)
        text = json.dumps(asdict(line), ensure_ascii=False)
        after_commit(session, lambda: self._write(run_dir, _file(run_dir, attempt.number), text))

    def _write(self, run_dir: RunDir, file: Path, text: str) -> None:
        if not run_dir.root.is_dir():
            return
        self._late.append((file, text))
        while self._late:
            place, line = self._late[0]
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with open(place, "a", encoding="utf-8") as stream:
                    stream.write(line + "\n")
            except OSError:
                # It stands in the database; the disk is asked again with the next line.
                log.exception("a line of the server could not be kept")
                return
            del self._late[0]


def server_lines(run_dir: RunDir, number: int) -> list[ServerLine]:
    """What the server said during an attempt, in order; a line that cannot be read is left out."""
    try:
        text = _file(run_dir, number).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for part in text.splitlines():
        try:
            line = ServerLine(**json.loads(part))
            _ = line.timestamp
        except (ValueError, TypeError):
            log.warning("a line that the server said of run %s is damaged", run_dir.root.name)
        else:
            lines.append(line)
    return sorted(lines, key=lambda line: line.offset)


def _file(run_dir: RunDir, number: int) -> Path:
    return run_dir.attempt(number).root / "server.jsonl"
