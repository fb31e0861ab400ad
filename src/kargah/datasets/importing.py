"""Importing files as a data set: read once to check and find columns, read again to write, then divided, then renamed.

    <home>/datasets/<id>/<version>/{train,validation,test}.parquet   manifest.json   dataset.json

The version is a SHA-256 over names and types of the columns and every row of every split, so the same content has the
same version, whatever the files' form. Files given for a split are that split. Without files for validation, about a
tenth of the training rows becomes it (`splits.choose_validation`). All rows are stored, also those that training leaves
out for want of a text or a label: these are told in `findings`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kargah.datasets.errors import ColumnNotFound, TrainSplitMissing
from kargah.datasets.mapping import ROLES, map_columns, task_of
from kargah.datasets.sources import SPLITS, SourceFile, Split, Tick, read_rows
from kargah.datasets.splits import choose_validation
from kargah.datasets.stored import DESCRIPTION, Column, DatasetInfo, FolderUnreadable, describe
from kargah.datasets.survey import Survey, hints_of, survey_file, unite
from kargah.datasets.tally import SplitTally, Tally
from kargah.datasets.values import ColumnType, as_type
from kargah.datasets.writing import SplitWriter
from kargah.ground.home import Home, folder_name
from kargah.ground.ids import new_id
from kargah.spec.layout import fsync_folder, write_json
from kargah.spec.manifest import FolderDamaged, verify_folder, write_manifest

OnProgress = Callable[[int, int], None]
"""Told `(bytes done, bytes in all)`; may raise to end the import."""

PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made. `path` is relative to the data directory; `facts` are for the registry."""

    info: DatasetInfo
    path: str
    size_bytes: int

    @property
    def version(self) -> str:
        return self.info.version

    @property
    def facts(self) -> dict[str, Any]:
        task = self.info.task
        return {"version": self.version, "task": task, "tasks": [task] if task else [], "numRows": self.info.splits}


def import_files(
    home: Home,
    dataset_id: str,
    files: Sequence[SourceFile],
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    on_progress: OnProgress | None = None,
) -> Imported:
    """Make a version of data set `dataset_id` from `files`. Importing the same again changes nothing.

    `columns` is role to column name (`mapping.map_columns` says what is looked for beside it). `on_progress` counts the
    bytes of the files, each read twice and counted half each time. Raises what `errors` holds, and `OSError`.
    """
    if not any(file.split in (None, "train") for file in files):
        raise TrainSplitMissing()
    ordered = sorted(files, key=lambda file: SPLITS.index(file.split or "train"))
    progress = _Progress(ordered, on_progress)
    surveys = [survey_file(file, progress.tick_for(file)) for file in ordered]
    types = unite(surveys)
    hints = hints_of([survey for survey in surveys if survey.source.split in (None, "train")], types)
    mapping = map_columns(hints, columns)
    _check_columns(surveys, mapping)
    task = task_of(mapping, task, list(types), ordered[0].name)
    parent = home.datasets / folder_name(dataset_id)
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / f".{new_id()}{PARTIAL}"
    partial.mkdir()
    try:
        tally = Tally(types, {role: column for role, column in mapping.items() if role in ROLES})
        splits = _write(partial, ordered, types, tally, progress)
        version = _version(types, splits)
        info = _info(parent / version, version, task, mapping, types, tally, splits, surveys)
        size_bytes = write_manifest(partial, version=version)
        write_json(partial / DESCRIPTION, info.to_json())
        _settle(partial, info.folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Imported(info, info.folder.relative_to(home.root).as_posix(), size_bytes)


def sweep(home: Home) -> None:
    """Delete what imports and deletions left behind. For the start of a server, before any import."""
    for folder in home.datasets.iterdir():
        for partial in (*folder.glob(f".*{PARTIAL}"), *folder.glob(".*.deleted")):
            shutil.rmtree(partial)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class _Progress:
    """Bytes read over both readings of all files."""

    def __init__(self, files: Sequence[SourceFile], on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._total = sum(file.size_bytes for file in files)
        self._behind = 0

    def tick_for(self, file: SourceFile) -> Tick:
        """The tick of the next reading of `file`."""
        begin = self._behind
        self._behind += file.size_bytes

        def tick(num_bytes: int) -> None:
            if self._on_progress is not None:
                self._on_progress((begin + min(num_bytes, file.size_bytes)) // 2, self._total)

        return tick


def _check_columns(surveys: Sequence[Survey], mapping: Mapping[str, str]) -> None:
    for survey in surveys:
        for column in mapping.values():
            if column not in survey.kinds:
                available = list(survey.kinds)
                raise ColumnNotFound(
                    column=column,
                    file=survey.source.name,
                    available=", ".join(available[:20]),
                    details={"column": column, "file": survey.source.name, "available": available},
                )


def _write(
    folder: Path, files: Sequence[SourceFile], types: Mapping[str, ColumnType], tally: Tally, progress: _Progress
) -> dict[Split, SplitTally]:
    by_split: dict[Split, list[SourceFile]] = {}
    for file in files:
        by_split.setdefault(file.split or "train", []).append(file)
    divides = "validation" not in by_split
    splits: dict[Split, SplitTally] = {}
    for split, members in by_split.items():
        counts = splits[split] = SplitTally()
        keys = divides and split == "train"
        with SplitWriter(folder / f"{split}.parquet", types) as writer:
            for file in members:
                tick = progress.tick_for(file)
                for number, row in enumerate(read_rows(file, tick), start=1):
                    values = [as_type(row.get(name), type) for name, type in types.items()]
                    writer.add_row(values, tally.add(values, split, counts, file, number, keys=keys))
                tick(file.size_bytes)
    if divides:
        splits = _divide(folder, types, splits)
    return {split: splits[split] for split in SPLITS if split in splits}


def _divide(folder: Path, types: Mapping[str, ColumnType], splits: dict[Split, SplitTally]) -> dict[Split, SplitTally]:
    """Give a part of the training rows to a validation split, if there are enough."""
    whole = splits["train"]
    mask = choose_validation(whole.keys, whole.labels)
    if not any(mask):
        return splits
    train, validation = SplitTally(), SplitTally()
    for row, is_chosen in enumerate(mask):
        part = validation if is_chosen else train
        part.num_rows += 1
        part.digests += whole.digests[row * 32 : (row + 1) * 32]
    everything = folder / "everything.parquet"
    os.rename(folder / "train.parquet", everything)
    begin = 0
    with (
        SplitWriter(folder / "train.parquet", types) as train_writer,
        SplitWriter(folder / "validation.parquet", types) as validation_writer,
        pq.ParquetFile(everything) as file,
    ):
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            chosen = mask[begin : begin + table.num_rows]
            begin += table.num_rows
            train_writer.add_table(table.filter(pa.array([not bit for bit in chosen])))
            validation_writer.add_table(table.filter(pa.array([bool(bit) for bit in chosen])))
    everything.unlink()
    return {**splits, "train": train, "validation": validation}


def _version(types: Mapping[str, ColumnType], splits: Mapping[Split, SplitTally]) -> str:
    sha = hashlib.sha256(json.dumps(list(types.items()), ensure_ascii=False).encode("utf-8"))
    for split, counts in splits.items():
        sha.update(f"\n{split} {counts.num_rows}\n".encode())
        sha.update(counts.digests)
    return sha.hexdigest()


def _info(
    folder: Path,
    version: str,
    task: str | None,
    mapping: dict[str, str],
    types: Mapping[str, ColumnType],
    tally: Tally,
    splits: Mapping[Split, SplitTally],
    surveys: Sequence[Survey],
) -> DatasetInfo:
    columns = []
    for name, type in types.items():
        column = tally.columns[name]
        unique = None if column.distinct is None else len(column.distinct)
        over = tally.max_unique if unique is None else None
        columns.append(Column(name, type, column.examples, column.num_nulls, unique, over))
    return DatasetInfo(
        folder=folder,
        version=version,
        task=task,
        mapping=mapping,
        labels=sorted(tally.labels),
        columns=columns,
        splits={split: counts.num_rows for split, counts in splits.items()},
        findings=list(tally.findings.values()),
        sources=[
            {
                "name": survey.source.name,
                "split": survey.source.split,
                "format": survey.format,
                "sizeBytes": survey.source.size_bytes,
                "numRows": survey.num_rows,
            }
            for survey in surveys
        ],
    )


def _settle(partial: Path, folder: Path) -> None:
    """Put a whole version in its place. The same content may be there already: then only its description is renewed."""
    if _is_whole(folder):
        os.replace(partial / DESCRIPTION, folder / DESCRIPTION)
        fsync_folder(folder)
        return
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(partial, folder)
    fsync_folder(folder.parent)


def _is_whole(folder: Path) -> bool:
    try:
        describe(folder)
        verify_folder(folder)
    except (FolderUnreadable, FolderDamaged):
        return False
    return True
