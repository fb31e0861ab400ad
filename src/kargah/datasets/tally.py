"""What is counted while the rows are written: nulls, different values and examples of each column, labels, findings."""

import hashlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kargah.datasets.errors import TooManyLabels
from kargah.datasets.sources import SourceFile, Split
from kargah.datasets.splits import KEY_BYTES, UNUSABLE
from kargah.datasets.values import ColumnType, Value, canonical_bytes, is_blank, label_text, text_of

MAX_LABELS = 100_000
MAX_UNIQUE = 100_000
MAX_UNIQUE_IN_ALL = 2_000_000
NUM_EXAMPLES = 3
EXAMPLE_CHARS = 200


@dataclass(slots=True)
class ColumnTally:
    """One column. `distinct` is None once there are more different values than are counted."""

    num_nulls: int = 0
    examples: list[Value] = field(default_factory=list)
    distinct: set[bytes] | None = field(default_factory=set)


@dataclass(slots=True)
class SplitTally:
    """One split as it is written: a SHA-256 a row, and for dividing it a text key and a label number a row."""

    num_rows: int = 0
    digests: bytearray = field(default_factory=bytearray)
    keys: bytearray = field(default_factory=bytearray)
    labels: "array[int]" = field(default_factory=lambda: array("i"))


class Tally:
    """Counts over every row of an import. `labels` maps the label texts of training and validation to numbers."""

    def __init__(self, columns: Mapping[str, ColumnType], mapping: Mapping[str, str]) -> None:
        self.columns = {name: ColumnTally() for name in columns}
        self.max_unique = min(MAX_UNIQUE, MAX_UNIQUE_IN_ALL // max(1, len(columns)))
        self.labels: dict[str, int] = {}
        self.findings: dict[str, dict[str, Any]] = {}
        names = list(columns)
        places = {role: names.index(column) for role, column in mapping.items()}
        self._texts = [places[role] for role in ("text", "textPair") if role in places]
        self._label = places.get("label")
        self._label_column = mapping.get("label", "")

    def add(
        self, values: list[Value], split: Split, tally: SplitTally, source: SourceFile, row: int, *, keys: bool
    ) -> int:
        """Count a row; with `keys` it can be divided afterwards. Returns its size in bytes. Raises `TooManyLabels`."""
        whole = canonical_bytes(values)
        digest = hashlib.sha256(whole).digest()
        tally.num_rows += 1
        tally.digests += digest
        for column, value in zip(self.columns.values(), values, strict=True):
            self._count(column, value)
        label = self._label_number(values, split, source, row)
        if keys:
            tally.keys += self._key(values, digest)
            tally.labels.append(label)
        return len(whole)

    def _count(self, column: ColumnTally, value: Value) -> None:
        if value is None:
            column.num_nulls += 1
            return
        if len(column.examples) < NUM_EXAMPLES and not is_blank(value):
            example = value[:EXAMPLE_CHARS] if isinstance(value, str) else value
            if example not in column.examples:
                column.examples.append(example)
        if column.distinct is not None:
            column.distinct.add(hashlib.blake2b(canonical_bytes([value]), digest_size=16).digest())
            if len(column.distinct) > self.max_unique:
                column.distinct = None

    def _label_number(self, values: list[Value], split: Split, source: SourceFile, row: int) -> int:
        usable = True
        if any(is_blank(values[place]) for place in self._texts):
            self._find("EMPTY_TEXT", source, row)
            usable = False
        if self._label is None:
            return 0 if usable else UNUSABLE
        label = values[self._label]
        if is_blank(label):
            self._find("EMPTY_LABEL", source, row)
            usable = False
        if not usable:
            return UNUSABLE
        text = label_text(label)
        number = self.labels.get(text)
        if number is None:
            number = len(self.labels)
            if split != "test":
                if number == MAX_LABELS:
                    raise TooManyLabels(column=self._label_column, limit=MAX_LABELS)
                self.labels[text] = number
        return number

    def _find(self, code: str, source: SourceFile, row: int) -> None:
        finding = self.findings.setdefault(code, {"code": code, "count": 0, "examples": []})
        finding["count"] += 1
        if len(finding["examples"]) < NUM_EXAMPLES:
            finding["examples"].append({"file": source.name, "row": row})

    def _key(self, values: list[Value], digest: bytes) -> bytes:
        if not self._texts:
            return digest[:KEY_BYTES]
        text = "\0".join("" if values[place] is None else text_of(values[place]) for place in self._texts)
        return hashlib.sha256(text.encode("utf-8")).digest()[:KEY_BYTES]
