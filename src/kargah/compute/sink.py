"""Where a running attempt puts its facts: the journal in real life, a list in tests."""

from typing import Any, Protocol


class Sink(Protocol):
    """Takes one past-tense fact; `JournalWriter` of `kargah.spec.journal` is the real one."""

    def append(self, type: str, *, durable: bool = False, **fields: Any) -> None:
        """Take a fact of the given type. Raises `OSError` when it cannot be kept."""


class Log:
    """Short technical messages for the person who watches a run, as `log` records."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def info(self, message: str, **details: Any) -> None:
        """Something worth knowing happened as it should."""
        self._sink.append("log", level="info", message=message, details=details)

    def warning(self, message: str, **details: Any) -> None:
        """Something a person may want to change."""
        self._sink.append("log", level="warning", message=message, details=details)

    def error(self, message: str, **details: Any) -> None:
        """The attempt ends because of this."""
        self._sink.append("log", level="error", message=message, details=details)
