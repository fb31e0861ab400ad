"""The first reading of a file: every row is checked, and what columns there are of which type is found out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kargah.datasets.columns import MAX_COLUMNS
from kargah.datasets.errors import EmptyData, TooManyColumns
from kargah.datasets.mapping import ColumnHint
from kargah.datasets.sources import Format, SourceFile, Tick, format_of, read_rows
from kargah.datasets.values import ColumnType, as_type, is_blank, kind_of, type_of

HINT_ROWS = 2000
_KEY_CHARS = 200


@dataclass(slots=True)
class Filled:
    """Of one column, over the first rows: values that are not blank, their characters, the different ones (cut)."""

    num_values: int = 0
    num_chars: int = 0
    distinct: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Survey:
    """What a file holds. `kinds` are those of `values.kind_of`, by column, in the order of appearance."""

    source: SourceFile
    format: Format
    num_rows: int = 0
    kinds: dict[str, set[str]] = field(default_factory=dict)
    filled: dict[str, Filled] = field(default_factory=dict)


def survey_file(source: SourceFile, tick: Tick) -> Survey:
    """Read a file once. Raises what `errors` holds."""
    survey = Survey(source, format_of(source))
    for row in read_rows(source, tick):
        survey.num_rows += 1
        for name, value in row.items():
            kinds = survey.kinds.get(name)
            if kinds is None:
                kinds = survey.kinds[name] = set()
            kind = kind_of(value)
            if kind is not None:
                kinds.add(kind)
        if survey.num_rows <= HINT_ROWS:
            _note(survey.filled, row)
        if len(survey.kinds) > MAX_COLUMNS:
            raise TooManyColumns(file=source.name, limit=MAX_COLUMNS)
    if not survey.num_rows:
        raise EmptyData(file=source.name)
    tick(source.size_bytes)
    return survey


def unite(surveys: Iterable[Survey]) -> dict[str, ColumnType]:
    """The columns of all files together, in the order of appearance, with a type that holds the values of each."""
    kinds: dict[str, set[str]] = {}
    for survey in surveys:
        for name, found in survey.kinds.items():
            kinds.setdefault(name, set()).update(found)
    return {name: type_of(found) for name, found in kinds.items()}


def hints_of(surveys: Iterable[Survey], columns: dict[str, ColumnType]) -> list[ColumnHint]:
    """What the first rows of `surveys` tell of each column."""
    totals = {name: Filled() for name in columns}
    for survey in surveys:
        for name, filled in survey.filled.items():
            total = totals[name]
            total.num_values += filled.num_values
            total.num_chars += filled.num_chars
            total.distinct |= filled.distinct
    return [
        ColumnHint(
            name, columns[name], total.num_values, total.num_chars / max(1, total.num_values), len(total.distinct)
        )
        for name, total in totals.items()
    ]


def _note(filled: dict[str, Filled], row: dict[str, Any]) -> None:
    for name, value in row.items():
        if not is_blank(value):
            text = as_type(value, "string")
            assert isinstance(text, str)
            column = filled.setdefault(name, Filled())
            column.num_values += 1
            column.num_chars += len(text)
            column.distinct.add(text[:_KEY_CHARS])
