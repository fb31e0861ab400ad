"""Receiving an upload: the parts of a multipart body go to the disk as they come, and nothing of them is trusted.

Fields are `name`, `task`, `columns` (JSON) and files `file`, `file:train`, `file:validation`, `file:test`; others are
rejected. Files are spooled under their number; the names they came with are only shown.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kargah.datasets.errors import EmptyData, TrainSplitMissing
from kargah.datasets.mapping import ROLES
from kargah.datasets.sources import SPLITS, SourceFile, Split
from kargah.ground.errors import ValidationFailed, invalid
from kargah.ground.ids import new_id
from kargah.ground.web.multipart import Receiver, spool
from kargah.spec.layout import read_json, write_json
from kargah.spec.run_spec import TASKS

UPLOAD = "upload.json"
UNFINISHED = ".receiving"

MAX_FILES = 64
MAX_FIELD_BYTES = 1024 * 1024
MAX_NAME_CHARS = 200

_FIELDS = ("name", "task", "columns")
_FILES: dict[str, Split | None] = {"file": None, **{f"file:{split}": split for split in SPLITS}}


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """One file of an upload, spooled as `<number>`."""

    number: int
    name: str
    split: Split | None


@dataclass(frozen=True, slots=True)
class Upload:
    """What an upload asks for; kept in its folder as `upload.json`, which is written last."""

    dataset_id: str
    name: str
    task: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    files: tuple[SpooledFile, ...] = ()

    def sources(self, folder: Path) -> list[SourceFile]:
        """Its files, as they stand in `folder`."""
        return [SourceFile(folder / str(file.number), file.split, file.name) for file in self.files]


async def receive(chunks: AsyncIterator[bytes], content_type: str, uploads: Path) -> tuple[Upload, Path]:
    """Take a multipart body in. Returns what it asks for, and the folder below `uploads` that holds it, synced.

    Raises `ValidationFailed`, `EmptyData`, `TrainSplitMissing`, and `OSError` of a full disk, and then leaves nothing.
    """
    receiver = _Receiver(uploads / f".{new_id()}{UNFINISHED}", content_type)
    return await spool(chunks, receiver, receiver.finish), receiver.folder


def read_upload(folder: Path) -> Upload | None:
    """The upload in a folder, or None when it is not whole."""
    value = read_json(folder / UPLOAD)
    if value is None:
        return None
    files = tuple(SpooledFile(**file) for file in value.pop("files"))
    upload = Upload(**value, files=files)
    return upload if all(source.path.is_file() for source in upload.sources(folder)) else None


class _Receiver(Receiver):
    """What an upload may hold."""

    def __init__(self, folder: Path, content_type: str) -> None:
        super().__init__(folder, content_type, _FIELDS, MAX_FIELD_BYTES)
        self._files: list[SpooledFile] = []

    def file_number(self, name: str, filename: str) -> int | None:
        if name not in _FILES:
            return None
        number = len(self._files)
        if number == MAX_FILES:
            raise invalid("file", "problem.tooMany", bound=MAX_FILES)
        self._files.append(SpooledFile(number, _shown_name(filename), _FILES[name]))
        return number

    def finish(self, data: bytes) -> Upload:
        """Take the last bytes; the upload is on the disk when this returns."""
        self.end(data)
        upload = Upload(new_id(), self._name(), self._task(), self._columns(), tuple(self._files))
        if not self._files:
            raise invalid("file", "problem.missing")
        for source in upload.sources(self.folder):
            if not source.size_bytes:
                raise EmptyData(file=source.name)
        if all(file.split in ("validation", "test") for file in self._files):
            raise TrainSplitMissing()
        write_json(self.folder / UPLOAD, asdict(upload))
        return upload

    def _name(self) -> str:
        name = self.text("name")
        if name is None or not name.strip():
            raise invalid("name", "problem.missing")
        if len(name) > MAX_NAME_CHARS:
            raise invalid("name", "problem.tooLong", bound=MAX_NAME_CHARS)
        return name

    def _task(self) -> str | None:
        task = self.text("task") or None
        if task is not None and task not in TASKS:
            raise invalid("task", "problem.oneOf", expected=", ".join(TASKS))
        return task

    def _columns(self) -> dict[str, str]:
        text = self.text("columns")
        return parse_columns(text) if text and text.strip() else {}


def parse_columns(text: str) -> dict[str, str]:
    """The `columns` of an upload: role to column name. Raises `ValidationFailed` with every problem."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise invalid("columns", "problem.json") from error
    if not isinstance(pairs, list) or not text.strip().startswith("{"):
        raise invalid("columns", "problem.object")
    problems: list[tuple[str, str, dict[str, Any]]] = []
    columns: dict[str, str] = {}
    for role, column in pairs:
        place = f"columns.{role}"
        if role not in ROLES:
            problems.append((place, "problem.unknown", {}))
        elif role in columns:
            problems.append((place, "problem.twice", {}))
        elif not isinstance(column, str):
            problems.append((place, "problem.string", {}))
        elif not column:
            problems.append((place, "problem.missing", {}))
        elif column in columns.values():
            problems.append((place, "problem.columnTwice", {"column": column}))
        else:
            columns[role] = column
    if problems:
        raise ValidationFailed(*problems)
    if "textPair" in columns and "text" not in columns:
        raise invalid("columns.text", "problem.missing")
    return columns


def _shown_name(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1][:255] or "file"
