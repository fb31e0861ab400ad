"""The files a data set is made from: what format each is, and its rows one by one.

Format is decided by the first bytes and, where these leave it open, by the end of the name:

- `PAR1`: Parquet. A known other format (zip and so Excel, gzip, PDF, …): refused.
- a name in `.jsonl` or `.ndjson`: JSON Lines; a name in `.json`: a JSON array when it begins with `[`, else JSON Lines;
- a name in `.csv`, `.tsv`, `.tab` or `.txt`: delimited text;
- any other name: JSON where the first character is `[` or `{`, else delimited text.
"""

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kargah.datasets.delimited import read_delimited
from kargah.datasets.errors import BadFile, EmptyData
from kargah.datasets.json_rows import read_json_array, read_json_lines
from kargah.datasets.parquet_rows import read_parquet

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Format = Literal["csv", "tsv", "jsonl", "json", "parquet"]

Tick = Callable[[int], None]
"""Told the number of bytes read so far, every now and then."""

_REFUSED = (
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"%PDF",
    b"\xd0\xcf\x11\xe0",
    b"\x28\xb5\x2f\xfd",
    b"SQLite format 3",
    b"7z\xbc\xaf",
    b"Rar!",
)
_ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}
_DATA_FILE = re.compile(r"\.(csv|tsv|tab|jsonl|ndjson|json|parquet)$", re.IGNORECASE)
_NOT_ROWS = re.compile(r"^(dataset_infos?|config|manifest|package|labels?|label2id|id2label)\.json$", re.IGNORECASE)
_SPLIT_WORDS: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"(^|[^a-z])(train|training)([^a-z]|$)", re.IGNORECASE),
    "validation": re.compile(r"(^|[^a-z])(validation|valid|val|dev|development)([^a-z]|$)", re.IGNORECASE),
    "test": re.compile(r"(^|[^a-z])(test|testing|eval|evaluation)([^a-z]|$)", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to import. `name` is what a person calls it, never a path; without `split` its rows are divided."""

    path: Path
    split: Split | None
    name: str

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size


def read_rows(source: SourceFile, tick: Tick) -> Iterator[dict[str, Any]]:
    """Every row of a file as column to value, in the order of the file.

    Raises what `errors` holds: nothing is skipped but blank lines, and nothing is guessed.
    """
    form = format_of(source)
    if form == "parquet":
        return read_parquet(source.path, source.name, tick)
    if form == "jsonl":
        return read_json_lines(source.path, source.name, tick)
    if form == "json":
        return read_json_array(source.path, source.name, tick)
    return read_delimited(source.path, source.name, tick, only="\t" if form == "tsv" else None)


def format_of(source: SourceFile) -> Format:
    """The format of a file. Raises `BadFile` and `EmptyData`."""
    with open(source.path, "rb") as file:
        head = file.read(4096)
    if not head:
        raise EmptyData(file=source.name)
    if head.startswith(b"PAR1"):
        return "parquet"
    ending = Path(source.name.lower()).suffix
    if head.startswith(_REFUSED) or ending == ".parquet":
        raise BadFile(file=source.name)
    first = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    if ending == ".json":
        return "json" if first == b"[" else "jsonl"
    return {b"[": "json", b"{": "jsonl"}.get(first, "csv")  # type: ignore[return-value]


def sources_in(folder: Path, files: Mapping[str, str] | None = None) -> list[SourceFile]:
    """The data files of a downloaded snapshot, with their splits.

    `files` (split to relative path) decides when it is given; otherwise every file of a known ending counts, and the
    split is what its path says (`data/train-00000-of-00002.parquet`, `dev.csv`), the file's name before its folders.
    """
    if files:
        return [SourceFile(folder / files[split], split, Path(files[split]).name) for split in SPLITS if split in files]
    found: list[SourceFile] = []
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts)
        if path.is_file() and not hidden and _DATA_FILE.search(path.name) and not _NOT_ROWS.match(path.name):
            found.append(SourceFile(path, _split_of(place), place.name))
    return found


def _split_of(place: Path) -> Split | None:
    for part in (place.stem, *reversed(place.parts[:-1])):
        for split, words in _SPLIT_WORDS.items():
            if words.search(part):
                return split
    return None
