"""Checks the built-in Persian data set: `python scripts/check_support_set.py` prints what it finds, exits 1 if any.

Near duplicates are pairs of texts whose sets of character 4-grams (folded by `kargah.text.fold`, without spaces and
punctuation) have a Jaccard index above a threshold (Broder 1997, "On the resemblance and containment of documents").
Every pair is compared; one sparse matrix product of some three thousand rows needs no MinHash.
"""

import csv
import io
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse  # type: ignore[import-untyped, unused-ignore]

from kargah.text.fold import fold

FOLDER = Path(__file__).resolve().parents[1] / "src" / "kargah" / "datasets" / "builtin" / "support_fa"
SPLITS = ("train", "validation", "test")
HEADER = ["text", "label"]
MAX_JACCARD_WITHIN = 0.6
MAX_JACCARD_ACROSS = 0.55
GRAM_LENGTH = 4
ZWNJ = "\N{ZERO WIDTH NON-JOINER}"
ARABIC_LETTERS = ("\N{ARABIC LETTER YEH}", "\N{ARABIC LETTER KAF}")
# The emoji joiner stands inside emoji that are made of several characters.
ALLOWED_CONTROLS = {ZWNJ, "\N{ZERO WIDTH JOINER}"}


@dataclass(frozen=True, slots=True)
class Row:
    """One message: where it stands (`number` counts from 0, the header left out), what it says, its intent."""

    split: str
    number: int
    text: str
    label: str


def main() -> int:
    rows = {split: read_split(FOLDER / f"{split}.csv") for split in SPLITS}
    for split, found in rows.items():
        print(describe(split, found))
    problems = find_problems(FOLDER)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems")
    return 1 if problems else 0


def find_problems(folder: Path) -> list[str]:
    """Everything wrong with the data set in `folder`, one line each; empty if it is sound."""
    problems: list[str] = []
    rows: list[Row] = []
    for split in SPLITS:
        path = folder / f"{split}.csv"
        problems += encoding_problems(path)
        found = read_split(path)
        problems += text_problems(found)
        rows += found
    labels = {row.label for row in rows}
    for split in SPLITS:
        missing = labels - {row.label for row in rows if row.split == split}
        problems += [f"{split}: label «{label}» has no row" for label in sorted(missing)]
    for first, second, jaccard in near_duplicates(rows, MAX_JACCARD_WITHIN, MAX_JACCARD_ACROSS):
        problems.append(
            f"near duplicate {jaccard:.2f}: {first.split}[{first.number}] {first.text!r} ({first.label})"
            f" ~ {second.split}[{second.number}] {second.text!r} ({second.label})"
        )
    return problems


def read_split(path: Path) -> list[Row]:
    """The rows of one file, in order. Raises `ValueError` for another header or a row that is not two fields."""
    # A byte order mark is reported by its own check, not as part of the first column's name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(file, strict=True))
    if not lines or lines[0] != HEADER:
        raise ValueError(f"{path.name}: the header must be {','.join(HEADER)}")
    rows = []
    for number, fields in enumerate(lines[1:]):
        if len(fields) != len(HEADER):
            raise ValueError(f"{path.name}: row {number} has {len(fields)} fields")
        rows.append(Row(path.stem, number, fields[0], fields[1]))
    return rows


def encoding_problems(path: Path) -> list[str]:
    """Bytes: UTF-8 without a byte order mark, LF line ends, quoted as RFC 4180 has it, ending with a line end."""
    data = path.read_bytes()
    problems = []
    if data.startswith(b"\xef\xbb\xbf"):
        problems.append(f"{path.name}: begins with a byte order mark")
    if b"\r" in data:
        problems.append(f"{path.name}: holds a carriage return")
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows([row.text, row.label] for row in read_split(path))
    if written.getvalue().encode() != data:
        problems.append(f"{path.name}: is not what a CSV writer with minimal quoting makes of its rows")
    return problems


def text_problems(rows: list[Row]) -> list[str]:
    """Texts and labels: not empty, no blanks at the ends, one line, no stray control or private-use character, NFC."""
    problems = []
    for row in rows:
        place = f"{row.split}[{row.number}]"
        for value in (row.text, row.label):
            if not value or value != value.strip():
                problems.append(f"{place}: empty, or blank at an end")
            stray = {c for c in value if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Cs")} - ALLOWED_CONTROLS
            problems += [f"{place}: stray character U+{ord(c):04X}" for c in sorted(stray)]
            if unicodedata.normalize("NFC", value) != value:
                problems.append(f"{place}: is not in Unicode normalisation form C")
    return problems


def near_duplicates(rows: list[Row], within: float, across: float) -> list[tuple[Row, Row, float]]:
    """Pairs with a Jaccard index of at least `within` (one split) or `across` (two splits), most alike first."""
    incidence = gram_matrix([row.text for row in rows])
    sizes = np.asarray(incidence.sum(axis=1)).ravel()
    common = sparse.triu(incidence @ incidence.T, k=1).tocoo()
    found = []
    for i, j, shared in zip(common.row, common.col, common.data, strict=True):
        jaccard = float(shared / (sizes[i] + sizes[j] - shared))
        if jaccard >= (within if rows[i].split == rows[j].split else across):
            found.append((rows[i], rows[j], jaccard))
    return sorted(found, key=lambda pair: -pair[2])


def gram_matrix(texts: list[str]) -> sparse.csr_matrix:
    """Texts × 4-grams, 1 where the gram occurs; a text shorter than that is one gram of itself."""
    columns: dict[str, int] = {}
    indices: list[int] = []
    starts = [0]
    for text in texts:
        plain = "".join(c for c in fold(text) if c.isalnum())
        grams = {plain[k : k + GRAM_LENGTH] for k in range(max(1, len(plain) - GRAM_LENGTH + 1))}
        indices += [columns.setdefault(gram, len(columns)) for gram in sorted(grams)]
        starts.append(len(indices))
    ones = np.ones(len(indices), dtype=np.int32)
    return sparse.csr_matrix((ones, indices, starts), shape=(len(texts), len(columns)))


def describe(split: str, rows: list[Row]) -> str:
    """One line about a split: rows, labels, length in words, shares of texts with ZWNJ and with Arabic letters."""
    words = sorted(len(row.text.split()) for row in rows)
    with_zwnj = sum(ZWNJ in row.text for row in rows) / len(rows)
    arabic = sum(any(letter in row.text for letter in ARABIC_LETTERS) for row in rows) / len(rows)
    counts = [sum(row.label == label for row in rows) for label in {row.label for row in rows}]
    return (
        f"{split}: {len(rows)} rows, {len(counts)} labels with {min(counts)} to {max(counts)} rows each, "
        f"{words[0]} to {words[-1]} words (median {words[len(words) // 2]}), "
        f"ZWNJ in {with_zwnj:.1%}, Arabic letters in {arabic:.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
