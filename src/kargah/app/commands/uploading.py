"""Sending files of a data set: read from disk as they are sent, with a live bar, and taken back by Ctrl-C."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from kargah.app.commands.console import (
    EXIT_INTERRUPTED,
    EXIT_USED_WRONGLY,
    fail,
    isolated,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from kargah.client import Client

ANSWER_SECONDS = 600.0
"""How long the server may take to look at what it got before it answers."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is sent. `files` are pairs of a split (empty: for the server to divide) and a file."""

    name: str
    files: list[tuple[str, Path]]
    columns: dict[str, str]
    task: str | None


def checked_files(named: dict[str, list[Path] | None]) -> list[tuple[str, Path]]:
    """Splits with their files, each a regular file that can be read. Ends the command otherwise, and for none."""
    files = [(split, path) for split, paths in named.items() for path in paths or []]
    if not files:
        raise typer.BadParameter(say("uploadNeeds"))
    for _, path in files:
        try:
            if not path.is_file():
                fail(say("noSuchFile", path=str(path)), EXIT_USED_WRONGLY)
            with path.open("rb"):
                pass
        except OSError as error:
            fail(f"{path}: {error.strerror}", EXIT_USED_WRONGLY)
    return files


def pairs(given: list[str], option: str) -> dict[str, str]:
    """`text=متن` for each, as a dictionary. Ends the command for what is not of that form."""
    found = {}
    for pair in given:
        key, separator, value = pair.partition("=")
        if not separator or not key or not value:
            raise typer.BadParameter(say("badPair", pair=pair), param_hint=option)
        found[key] = value
    return found


def send(client: "Client", parcel: Parcel) -> dict[str, Any]:
    """Send the files. Returns the server's `data`. Raises `ApiError`, `ServerUnreachable`.

    Ctrl-C before the last byte takes the upload back: the connection ends, and the server keeps nothing of it.
    """
    # Only here: the other verbs of data sets show their help without HTTP.
    import httpx

    fields = {"name": parcel.name}
    if parcel.columns:
        fields["columns"] = json.dumps(parcel.columns, ensure_ascii=False)
    if parcel.task:
        fields["task"] = parcel.task
    total = sum(path.stat().st_size for _, path in parcel.files)
    with ExitStack() as stack:
        told = Bar(stack.enter_context(sending_bar(total)))
        files = []
        for split, path in parcel.files:
            source = Told(stack.enter_context(path.open("rb")), told)
            files.append((f"file:{split}" if split else "file", (path.name, source)))
        try:
            timeout = httpx.Timeout(30.0, read=ANSWER_SECONDS)
            answer = client.answer("POST", "/api/datasets/upload", data=fields, files=files, timeout=timeout)
        except KeyboardInterrupt:
            if told.sent >= total:
                raise
            fail(say("uploadCancelled"), EXIT_INTERRUPTED)
    data: dict[str, Any] = answer["data"]
    return data


class Bar:
    """Counts bytes that were handed to the connection."""

    def __init__(self, show: Callable[[int], None]) -> None:
        self.sent = 0
        self._show = show

    def add(self, num_bytes: int) -> None:
        self.sent += num_bytes
        self._show(self.sent)


class Told:
    """A file that tells how much of it was read. httpx asks for no more than this."""

    def __init__(self, file: BinaryIO, bar: Bar) -> None:
        self._file = file
        self._bar = bar

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        part = self._file.read(size)
        self._bar.add(len(part))
        return part

    def fileno(self) -> int:
        """By this httpx learns how long it is."""
        return self._file.fileno()


@contextmanager
def sending_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A live bar of `total` bytes to send; told how many were sent in all."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with progress_bar(*columns) as bar:
        task = bar.add_task(isolated(say("phase.uploading")), total=total)
        yield lambda sent: bar.update(task, completed=sent)
