"""A data set on disk, one folder a version: a Parquet file a split, and `dataset.json` that describes them.

`dataset.json` is written last and the folder renamed into its place, so a folder with one is whole. `manifest.json`
holds the digests of the Parquet files.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kargah.datasets.values import Value, text_of
from kargah.ground.errors import invalid
from kargah.spec.layout import read_json
from kargah.text.fold import fold

DESCRIPTION = "dataset.json"
FORMAT_VERSION = 1

# Rows of one answer together; a longer list of huge texts ends early.
MAX_ANSWER_BYTES = 32 * 1024 * 1024


class FolderUnreadable(Exception):
    """A folder is no data set, or a damaged one."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `num_unique` is None when there are more than `num_unique_over` different values (null is not one)."""

    name: str
    type: str
    examples: list[Value]
    num_nulls: int
    num_unique: int | None
    num_unique_over: int | None = None


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A data set's version. `mapping` is role to column; `labels` are the texts in training and validation, sorted.

    A row counts for `labels` only when none of its mapped values is null or blank. `splits` is name to number of rows.
    """

    folder: Path
    version: str
    task: str | None
    mapping: dict[str, str]
    labels: list[str]
    columns: list[Column]
    splits: dict[str, int]
    findings: list[dict[str, Any]] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What `dataset.json` holds."""
        value = {
            name: getattr(self, name)
            for name in ("version", "task", "mapping", "labels", "splits", "findings", "sources")
        }
        return {
            "formatVersion": FORMAT_VERSION,
            **value,
            "columns": [dataclasses.asdict(column) for column in self.columns],
        }


def describe(folder: Path) -> DatasetInfo:
    """What is stored in a version's folder. Raises `FolderUnreadable`."""
    try:
        value = read_json(folder / DESCRIPTION)
        if value is None:
            raise FolderUnreadable(f"{folder.name} has no {DESCRIPTION}")
        columns = [Column(**column) for column in value["columns"]]
        names = ("version", "task", "mapping", "labels", "splits", "findings", "sources")
        info = DatasetInfo(folder=folder, columns=columns, **{name: value[name] for name in names})
    except (ValueError, KeyError, TypeError) as error:
        raise FolderUnreadable(str(error)) from error
    if not all((folder / f"{split}.parquet").is_file() for split in info.splits):
        raise FolderUnreadable(f"{folder.name} lacks a split")
    return info


@dataclass(frozen=True, slots=True)
class RowsPart:
    """Some rows of a split; `total` counts all that match."""

    rows: list[dict[str, Value]]
    total: int
    split: str


def read_part(info: DatasetInfo, split: str | None, offset: int, limit: int, q: str | None = None) -> RowsPart:
    """Rows `offset` to `offset + limit` of a split (of `train`, or the first there is, by default).

    `q` keeps rows of which a value contains it, folded. Only row groups that are needed are read; rows of more than
    32 MiB together end the part early, after one row at least. Raises `ValidationFailed` for a split that is not there,
    `FolderUnreadable` for a damaged file.
    """
    name = split or next(iter(info.splits))
    if name not in info.splits:
        raise invalid("split", "problem.oneOf", expected=", ".join(info.splits))
    try:
        with pq.ParquetFile(info.folder / f"{name}.parquet") as file:
            return _searched(file, name, offset, limit, fold(q)) if q else _slice(file, name, offset, limit)
    except (pa.ArrowException, OSError) as error:
        raise FolderUnreadable(str(error)) from error


def _slice(file: pq.ParquetFile, split: str, offset: int, limit: int) -> RowsPart:
    rows: list[dict[str, Value]] = []
    begin = num_bytes = 0
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if end > offset and begin < offset + limit and (not rows or num_bytes < MAX_ANSWER_BYTES):
            table = file.read_row_group(group)
            num_bytes += _append(
                rows, table.slice(max(0, offset - begin), offset + limit - max(begin, offset)), num_bytes
            )
        begin = end
    return RowsPart(rows, begin, split)


def _searched(file: pq.ParquetFile, split: str, offset: int, limit: int, key: str) -> RowsPart:
    rows: list[dict[str, Value]] = []
    total = num_bytes = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        mask = _matches(table, key)
        found = table.filter(pa.array(mask))
        begin, total = total, total + found.num_rows
        if total > offset and begin < offset + limit and (not rows or num_bytes < MAX_ANSWER_BYTES):
            num_bytes += _append(
                rows, found.slice(max(0, offset - begin), offset + limit - max(begin, offset)), num_bytes
            )
    return RowsPart(rows, total, split)


def _append(rows: list[dict[str, Value]], table: pa.Table, num_bytes: int) -> int:
    """Put a table's rows behind `rows` as far as the limit allows. Returns their bytes, roughly."""
    if not table.num_rows:
        return 0
    fitting = table.num_rows
    if num_bytes + table.nbytes > MAX_ANSWER_BYTES:
        share = (MAX_ANSWER_BYTES - num_bytes) / table.nbytes
        fitting = max(0 if rows else 1, int(fitting * share))
    rows.extend(table.slice(0, fitting).to_pylist())
    # What did not fit ends the answer: the rows behind it would leave a gap.
    return MAX_ANSWER_BYTES if fitting < table.num_rows else int(table.nbytes)


def _matches(table: pa.Table, key: str) -> list[bool]:
    mask = [False] * table.num_rows
    for column in table.columns:
        distinct = pc.dictionary_encode(column).combine_chunks()
        hits = [key in fold(text_of(value)) for value in distinct.dictionary.to_pylist()]
        for row, place in enumerate(distinct.indices.to_pylist()):
            if place is not None and hits[place]:
                mask[row] = True
    return mask
