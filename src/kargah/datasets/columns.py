"""Names of columns: none twice, none empty, not too many."""

from collections import Counter
from collections.abc import Sequence

from kargah.datasets.errors import DuplicateColumn, TooManyColumns

MAX_COLUMNS = 1000


def name_columns(names: Sequence[str]) -> list[str]:
    """`names`, where a column without a name is called by its place: `column3`."""
    taken = set(names)
    named: list[str] = []
    for place, name in enumerate(names, start=1):
        given = name
        if not name.strip():
            given = f"column{place}"
            while given in taken:
                given += "_"
            taken.add(given)
        named.append(given)
    return named


def check_names(names: Sequence[str], file: str) -> None:
    """Raises `DuplicateColumn` and `TooManyColumns`."""
    if len(names) > MAX_COLUMNS:
        raise TooManyColumns(file=file, limit=MAX_COLUMNS)
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DuplicateColumn(file=file, column=name)
