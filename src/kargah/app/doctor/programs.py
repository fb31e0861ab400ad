"""Child programs that print one JSON object a line: read as they go, ended at a time limit and with their reader."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LAST_WORDS_BYTES = 4096
REAP_SECONDS = 10.0


@dataclass(slots=True)
class Ended:
    """How a program ended. `exit_code` is negative for a signal; `last_words` is the last line it wrote as an error."""

    records: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int = 0
    is_timed_out: bool = False
    last_words: str = ""


def run_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    limit_seconds: float,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Ended:
    """Run a program to its end, or to the time limit, when it and its children are killed. Raises `OSError`.

    Its standard input stays open as long as this process lives. Whatever ends the reading, Ctrl-C too, ends it.
    """
    ended = Ended()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _kill(child)

        timer = threading.Timer(limit_seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                record = _record(line)
                if record is not None:
                    ended.records.append(record)
                    on_record(record)
            ended.exit_code = child.wait()
        finally:
            timer.cancel()
            _end(child)
        ended.is_timed_out = expired.is_set()
        ended.last_words = _last_line(errors.fileno())
    return ended


def _record(line: str) -> dict[str, Any] | None:
    """The object in a line, or None: libraries print things of their own."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _end(child: "subprocess.Popen[str]") -> None:
    """Leave nothing of the program behind, whatever stopped the reading."""
    _kill(child)
    with contextlib.suppress(subprocess.TimeoutExpired):
        # A process that the kernel holds (a dead network disk) is not to hold this one too.
        child.wait(REAP_SECONDS)
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _kill(child: "subprocess.Popen[str]") -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def _last_line(handle: int) -> str:
    size = os.fstat(handle).st_size
    text = os.pread(handle, LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES)).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
