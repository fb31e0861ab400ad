"""The edges of the command: what the standard streams can take, a reader that went away, signals that end it.

Nothing here is set at import: `run` prepares the process, so that a program that imports the command stays as it is.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TextIO

EXIT_INTERRUPTED, EXIT_PIPE, EXIT_TERMINATED = 130, 141, 143


def run(program: Callable[[], object]) -> NoReturn:
    """Run the command in a prepared process and end with its exit code, whatever happens to its streams."""
    _prepare_streams()
    _obey_signals()
    before = _output()
    try:
        program()
        code: str | int | None = 0
    except SystemExit as ended:
        # Typer and rich put something that swallows all in the place of an output whose reader left, and say 1.
        code = ended.code if _output() == before else EXIT_PIPE
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError as error:
        code = _failed(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            code = _failed(error)
    sys.exit(code)


def reader_left() -> NoReturn:
    """End as any program does whose output nobody reads any more. What is still buffered goes nowhere."""
    _silence()
    raise SystemExit(EXIT_PIPE)


def default_signals() -> None:
    """Give SIGTERM and SIGHUP back to whoever sets handlers of its own, as the server does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_DFL)


def takes_unicode(stream: TextIO | None) -> bool:
    """Whether every letter can be written to a stream."""
    return stream is not None and (stream.encoding or "").lower().replace("-", "").startswith("utf")


def _output() -> tuple[int, int, int]:
    """What standard output is: the stream, and the file behind it."""
    try:
        behind = os.fstat(1)
    except OSError:  # it is closed
        return id(sys.stdout), 0, 0
    return id(sys.stdout), behind.st_dev, behind.st_ino


def _prepare_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # A letter that the terminal's encoding does not have is escaped, it does not end the command.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _obey_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        # What was told to be ignored (nohup) stays ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _on_signal)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    # By way of an exception, so that everything opened is closed: a half-sent upload, a hidden cursor, a child.
    raise SystemExit(128 + number)


def _failed(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        _silence()
        return EXIT_PIPE
    place = f"{error.filename}: " if error.filename else ""
    _silence()
    if sys.stderr is not None:
        sys.stderr.write(f"{place}{error.strerror or error}\n")
    return 1


def _silence() -> None:
    # Python flushes standard output once more at its end and would complain of the pipe there.
    if sys.stdout is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
