"""The rows a run trains and validates on: Parquet files in, texts and numbered labels out.

Columns are found by role (`text`, `textPair`, `label`). Several data sets are put one behind the other and their
labels united. A data set without `validation.parquet` gives up part of its training rows, chosen by content; one whose
validation rows were divided off by its import is divided anew when the run asks for a share of its own.
"""

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kargah.compute.failures import Code, TrainingFailed, damage_is
from kargah.compute.sink import Log
from kargah.spec.manifest import MANIFEST, FolderDamaged, verify_folder
from kargah.spec.run_spec import DatasetRef, RunSpec

DEFAULT_VALIDATION_SPLIT = 0.1
MAX_LABELS = 1000
ALWAYS_ALLOWED_LABELS = 100
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(slots=True)
class Rows:
    """Texts with their labels as text; `pairs` is as long as `texts`, or empty when the task has one text."""

    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def extend(self, other: "Rows") -> None:
        """Put the rows of `other` behind these."""
        self.texts += other.texts
        self.pairs += other.pairs
        self.labels += other.labels

    def take(self, numbers: list[int]) -> "Rows":
        """The rows with these numbers, in their order."""
        return Rows(
            [self.texts[n] for n in numbers],
            [self.pairs[n] for n in numbers] if self.pairs else [],
            [self.labels[n] for n in numbers],
        )

    def digest(self) -> str:
        """SHA-256 of every text and label, in hex: equal exactly when the rows are."""
        sha = hashlib.sha256()
        for column in (self.texts, self.pairs, self.labels):
            for text in column:
                data = text.encode("utf-8", "surrogatepass")
                sha.update(len(data).to_bytes(8, "little") + data)
            sha.update(b"\xff" * 8)
        return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run sees. `labels` are the classes in the order that numbers them."""

    train: Rows
    validation: Rows
    labels: list[str]


def read_training_data(spec: RunSpec, log: Log) -> TrainingData:
    """Read every data set of the run. Raises `TrainingFailed` with a code that says which file, column or label."""
    train, validation = Rows(), Rows()
    for dataset in spec.datasets:
        given, held_out = _read_dataset(dataset, spec.config.columns, spec.config.validation_split, log)
        if train.texts and bool(train.pairs) != bool(given.pairs):
            raise TrainingFailed(
                Code.SPEC_INVALID, "some data sets have a second text and some have not", field="datasets"
            )
        train.extend(given)
        validation.extend(held_out)
    if not train.texts:
        raise TrainingFailed(Code.EMPTY_DATA, "no training rows")
    labels = _unite_labels(spec.datasets, train)
    _check_number_of_labels(labels, len(train))
    _check_labels(train, validation, labels, log)
    log.info("dataRead", numTrainRows=len(train), numValidationRows=len(validation), labels=labels)
    return TrainingData(train, validation, labels)


def read_split(folder: Path, split: str, columns: dict[str, str], dataset_id: str) -> tuple[Rows, int]:
    """Rows of one split, and how many were left out for a missing text or label."""
    path = folder / f"{split}.parquet"
    with damage_is(Code.DATA_DAMAGED, path.name, dataset=dataset_id):
        names = pq.read_schema(path).names
    wanted = {role: columns[role] for role in ("text", "textPair", "label") if columns.get(role)}
    for role in ("text", "label"):
        if role not in wanted:
            raise TrainingFailed(Code.COLUMN_NOT_FOUND, f"no column is given for {role}", column=role)
    for column in wanted.values():
        if column not in names:
            raise TrainingFailed(Code.COLUMN_NOT_FOUND, f"{path.name} has no column {column}", column=column)
    with damage_is(Code.DATA_DAMAGED, path.name, dataset=dataset_id):
        table = pq.read_table(path, columns=sorted(set(wanted.values())))
        return _rows_of(table, wanted)


def label_text(value: Any) -> str:
    """A label as text, byte for byte; whole floats lose their fraction (a column of integers with gaps is floats)."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def split_by_content(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """Part rows into a training and a validation part, each label by itself, the same way every time.

    Rows are ordered by the SHA-256 of their texts; equal texts of a label stay together, so none leaks across. A label
    with at least two different texts gives at least one row, and never all of them.
    """
    if share <= 0:
        return rows, Rows(pairs=[])
    by_label: dict[str, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, label in enumerate(rows.labels):
        by_label[label][_content_key(rows, number)].append(number)
    held_out: set[int] = set()
    for groups in by_label.values():
        wanted = max(1, round(share * sum(len(numbers) for numbers in groups.values())))
        taken = 0
        for key in sorted(groups)[: len(groups) - 1]:
            if taken >= wanted:
                break
            held_out.update(groups[key])
            taken += len(groups[key])
    kept = [number for number in range(len(rows)) if number not in held_out]
    return rows.take(kept), rows.take(sorted(held_out))


def _read_dataset(
    dataset: DatasetRef, columns: dict[str, str] | None, share: float | None, log: Log
) -> tuple[Rows, Rows]:
    folder = Path(dataset.path)
    if (folder / MANIFEST).is_file():
        try:
            verify_folder(folder)
        except FolderDamaged as error:
            raise TrainingFailed(Code.DATA_DAMAGED, str(error), dataset=dataset.id) from error
    roles = {**dataset.columns, **(columns or {})}
    train, num_left_out = read_split(folder, "train", roles, dataset.id)
    validation = Rows()
    is_given = (folder / "validation.parquet").is_file()
    if is_given:
        validation, more_left_out = read_split(folder, "validation", roles, dataset.id)
        num_left_out += more_left_out
    if not is_given or (dataset.validation_made and share is not None):
        train.extend(validation)
        train, validation = split_by_content(train, DEFAULT_VALIDATION_SPLIT if share is None else share)
        log.info("validationSplitOff", dataset=dataset.id, numRows=len(validation))
    elif share is not None:
        log.info("validationRespected", dataset=dataset.id, numRows=len(validation))
    if num_left_out:
        log.warning("rowsLeftOut", dataset=dataset.id, numRows=num_left_out)
    if dataset.labels:
        known = set(dataset.labels)
        for label in train.labels + validation.labels:
            if label not in known:
                raise TrainingFailed(Code.UNKNOWN_LABEL, f"{dataset.id} does not declare this label", label=label)
    return train, validation


def _rows_of(table: pa.Table, wanted: dict[str, str]) -> tuple[Rows, int]:
    texts = table.column(wanted["text"]).to_pylist()
    pairs = table.column(wanted["textPair"]).to_pylist() if "textPair" in wanted else None
    labels = table.column(wanted["label"]).to_pylist()
    rows = Rows()
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        pair = pairs[number] if pairs is not None else ""
        if _is_blank(text) or (pairs is not None and _is_blank(pair)) or _is_blank(label):
            continue
        rows.texts.append(str(text))
        rows.labels.append(label_text(label))
        if pairs is not None:
            rows.pairs.append(str(pair))
    return rows, len(texts) - len(rows)


def _is_blank(value: Any) -> bool:
    # NaN differs from itself.
    return value is None or value != value or not str(value).strip()


def _content_key(rows: Rows, number: int) -> bytes:
    text = rows.texts[number] + ("\0" + rows.pairs[number] if rows.pairs else "")
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _unite_labels(datasets: list[DatasetRef], train: Rows) -> list[str]:
    declared = [dataset.labels for dataset in datasets]
    if declared[0] and all(labels == declared[0] for labels in declared):
        return list(declared[0])
    united = set(train.labels).union(*declared)
    if all(_WHOLE_NUMBER.fullmatch(label) for label in united):
        return sorted(united, key=lambda label: (int(label), label))
    return sorted(united)


def _check_number_of_labels(labels: list[str], num_rows: int) -> None:
    """Refuse a column that is no label: an id or a free text makes a class of every row, and a head without end."""
    limit = min(MAX_LABELS, max(ALWAYS_ALLOWED_LABELS, num_rows // 2))
    if len(labels) > limit:
        raise TrainingFailed(
            Code.TOO_MANY_LABELS,
            f"{len(labels)} labels among {num_rows} training rows",
            count=len(labels),
            limit=limit,
        )


def _check_labels(train: Rows, validation: Rows, labels: list[str], log: Log) -> None:
    known = set(labels)
    for label in validation.labels:
        if label not in known:
            raise TrainingFailed(Code.UNKNOWN_LABEL, "only validation rows have this label", label=label)
    counts = Counter(train.labels)
    if len(counts) < 2:
        raise TrainingFailed(Code.SINGLE_CLASS, "every training row has the same label", label=train.labels[0])
    for label in labels:
        if label not in counts:
            log.warning("labelWithoutRows", label=label)
