"""Where a running attempt puts its facts: the journal in real life, a list in tests."""

from typing import Any, Protocol

from kargah.spec.control import Exit
from kargah.spec.journal import FAILED_LINE
from kargah.text.messages import translate


class Sink(Protocol):
    """Takes one past-tense fact; `JournalWriter` of `kargah.spec.journal` is the real one."""

    def append(self, type: str, *, durable: bool = False, **fields: Any) -> None:
        """Take a fact of the given type. Raises `OSError` when it cannot be kept."""


class Log:
    """Lines for the person who watches a run, as `log` records.

    A line is a sentence `log.<key>` and what fills it, so that its reader may see it in another language; the record
    has it in English too. Of `details`, a sentence need not name all.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def info(self, key: str, /, **details: Any) -> None:
        """Something worth knowing happened as it should."""
        self._append("info", key, details)

    def warning(self, key: str, /, **details: Any) -> None:
        """Something a person may want to change."""
        self._append("warning", key, details)

    def failed(self, ended: Exit) -> None:
        """The attempt ends because of an error. Its own sentence is the reader's to find, by the code."""
        details = {"step": ended.step, **ended.params, "error": ended.error, "detail": ended.detail}
        self._sink.append("log", level="error", message=ended.detail, key=FAILED_LINE, details=details)

    def _append(self, level: str, key: str, details: dict[str, Any]) -> None:
        message = translate(f"log.{key}", "en", **details)
        self._sink.append("log", level=level, message=message, key=key, details=details)
