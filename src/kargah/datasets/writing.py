"""Writing a split: Parquet in row groups of 10,000 rows or 16 MiB, whichever is less, so that reading stays cheap."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from kargah.datasets.values import ARROW_TYPES, ColumnType, Value

GROUP_ROWS = 10_000
GROUP_BYTES = 16 * 1024 * 1024


class SplitWriter:
    """Writes one Parquet file; no row, no file. On disk for good when the `with` block has ended well."""

    def __init__(self, path: Path, columns: Mapping[str, ColumnType]) -> None:
        self._path = path
        self._schema = pa.schema([(name, ARROW_TYPES[type]) for name, type in columns.items()])
        self._writer: Any = None
        self._tables: list[Any] = []
        self._rows: list[Sequence[Value]] = []
        self._num_rows = self._num_bytes = 0

    def add_row(self, values: Sequence[Value], num_bytes: int) -> None:
        """Append a row of about `num_bytes`."""
        self._rows.append(values)
        self._hold(1, num_bytes)

    def add_table(self, table: Any) -> None:
        """Append an Arrow table of the same columns."""
        if table.num_rows:
            self._tables.append(table)
            self._hold(table.num_rows, table.nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()
            if kind is None:
                with open(self._path, "rb+") as file:
                    os.fsync(file.fileno())

    def _hold(self, num_rows: int, num_bytes: int) -> None:
        self._num_rows += num_rows
        self._num_bytes += num_bytes
        if self._num_rows >= GROUP_ROWS or self._num_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(values, type) for values, type in zip(columns, self._schema.types, strict=True)]
            self._tables.append(pa.Table.from_arrays(arrays, schema=self._schema))
        if self._tables:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
            self._writer.write_table(pa.concat_tables(self._tables), row_group_size=max(1, self._num_rows))
        self._tables, self._rows = [], []
        self._num_rows = self._num_bytes = 0
