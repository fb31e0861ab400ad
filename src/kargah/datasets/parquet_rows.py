"""Parquet rows: numbers, booleans and text as they are, times and decimals as text, everything nested as JSON."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kargah.datasets.columns import check_names, name_columns
from kargah.datasets.errors import BadFile, EmptyData
from kargah.datasets.values import without_nan

BATCH_ROWS = 1000


def read_parquet(path: Path, name: str, tick: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file. Raises `BadFile`, `EmptyData`, `DuplicateColumn`, `TooManyColumns`."""
    size_bytes = path.stat().st_size
    done = 0
    try:
        with pq.ParquetFile(path) as file:
            total = file.metadata.num_rows
            if not total:
                raise EmptyData(file=name)
            columns = name_columns(file.schema_arrow.names)
            check_names(columns, name)
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                values = [_values(column) for column in batch.columns]
                for row in zip(*values, strict=True):
                    yield dict(zip(columns, row, strict=True))
                done += batch.num_rows
                tick(size_bytes * done // total)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadFile(file=name) from error


def _values(column: Any) -> list[Any]:
    type = column.type
    if pa.types.is_dictionary(type):
        column, type = column.dictionary_decode(), type.value_type
    if pa.types.is_temporal(type) or pa.types.is_decimal(type):
        column = column.cast(pa.string())
    values: list[Any] = column.to_pylist()
    return [without_nan(value) for value in values] if pa.types.is_floating(type) else values
