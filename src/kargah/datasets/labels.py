"""The labels of a stored data set, counted split by split for any choice of columns: what a start is judged by."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kargah.datasets.stored import DatasetInfo, FolderUnreadable
from kargah.datasets.values import label_text

TEXT_ROLES = ("text", "textPair")


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Usable rows of each label. A row is usable when none of its mapped values is null or blank."""

    train: Counter[str]
    validation: Counter[str]


def count_labels(info: DatasetInfo, columns: Mapping[str, str], *, validation_made_anew: bool) -> LabelCounts:
    """Count the labels of `info` by the column that `columns` (role to name) says.

    With `validation_made_anew` both splits count as training rows, for the run divides them itself and never takes all
    rows of a label. Raises `FolderUnreadable` for a damaged file.
    """
    train = _count(info, "train", columns)
    validation = _count(info, "validation", columns) if "validation" in info.splits else Counter()
    return LabelCounts(train + validation, Counter()) if validation_made_anew else LabelCounts(train, validation)


def _count(info: DatasetInfo, split: str, columns: Mapping[str, str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    texts = [columns[role] for role in TEXT_ROLES if role in columns]
    label = columns["label"]
    try:
        with pq.ParquetFile(info.folder / f"{split}.parquet") as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=sorted({*texts, label}))
                for name in {*texts, label}:
                    table = table.filter(_is_filled(table.column(name)))
                for pair in pc.value_counts(table.column(label).combine_chunks()):
                    counts[label_text(pair["values"].as_py())] += pair["counts"].as_py()
    except (pa.ArrowException, OSError) as error:
        raise FolderUnreadable(str(error)) from error
    return counts


def _is_filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(column.type):
        return pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(column), ""), False)
    return pc.is_valid(column)
