"""Dividing rows into training and validation by what they say, the same way every time and on every machine."""

from array import array
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

KEY_BYTES = 16
UNUSABLE = -1
"""The label number of a row that training leaves out."""


def choose_validation(keys: bytes | bytearray, labels: "array[int]") -> bytearray:
    """A mask with 1 for each row of the validation split, about a tenth of each label.

    `keys` holds the SHA-256 of each row's text, cut to 16 bytes, row behind row; `labels` its label number, or
    `UNUSABLE`. Rows of one text are a group and stay together, whatever their labels; a group counts for the label of
    its first usable row. Within a label groups go in the order of their keys: each is taken that does not pass a tenth
    of the label's rows (rounded half up, so a label of five rows gives one). When the first tenth is smaller than every
    group, the smallest one is taken; a label's only group never is. Unusable rows alone stay in training.
    """
    by_label: dict[int, list[list[int]]] = defaultdict(list)
    for group in _groups(keys):
        usable = [row for row in group if labels[row] != UNUSABLE]
        if usable:
            by_label[labels[usable[0]]].append(group)
    mask = bytearray(len(labels))
    for groups in by_label.values():
        for group in _first_tenth(groups):
            for row in group:
                mask[row] = 1
    return mask


def _groups(keys: bytes | bytearray) -> Iterator[list[int]]:
    def key(row: int) -> bytes:
        return bytes(keys[row * KEY_BYTES : (row + 1) * KEY_BYTES])

    for _, rows in groupby(sorted(range(len(keys) // KEY_BYTES), key=key), key=key):
        yield list(rows)


def _first_tenth(groups: list[list[int]]) -> list[list[int]]:
    wanted = (sum(map(len, groups)) + 5) // 10
    taken: list[list[int]] = []
    for group in groups:
        if len(group) <= wanted:
            taken.append(group)
            wanted -= len(group)
    if not taken and wanted and len(groups) > 1:
        taken.append(min(groups, key=len))
    return taken
