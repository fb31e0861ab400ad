"""Which column holds the text, its second text, and the label: as told, else by name, else by content.

By name (compared folded, without spaces, `_` and `-`; earlier names win over later ones):

- text and textPair: `text` or `متن` alone; else a pair of `PAIRS` of which both are there; else one of `TEXTS`;
- label: one of `LABELS`.

By content, over the first rows of the training files: the text is the string column with the longest values on average;
the label is the column (of strings, integers or booleans, with short values) that has the fewest different values, at
least two and at most half as many as rows; of equals the last one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kargah.datasets.errors import ColumnNotFound
from kargah.datasets.values import ColumnType
from kargah.text.fold import fold

ROLES = ("text", "textPair", "label")
TEXT_CLASSIFICATION = "text-classification"

FIRST_TEXTS = ("text", "متن")
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sent1", "sent2"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("question1", "question2"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("فرض", "فرضیه"),
    ("مقدمه", "فرضیه"),
    ("جمله۱", "جمله۲"),
    ("جمله اول", "جمله دوم"),
    ("متن۱", "متن۲"),
    ("متن اول", "متن دوم"),
    ("پرسش", "پاسخ"),
    ("سوال", "جواب"),
    ("سوال", "پاسخ"),
)
TEXTS = (
    *("sentence", "comment", "review", "content", "body", "message", "utterance", "utt", "tweet", "post", "article"),
    *("document", "description", "abstract", "inputs", "input", "query", "question", "title"),
    *(
        "جمله",
        "نظر",
        "نظرات",
        "دیدگاه",
        "پیام",
        "محتوا",
        "توییت",
        "بازخورد",
        "خبر",
        "مقاله",
        "شرح",
        "سوال",
        "پرسش",
        "عنوان",
    ),
)
LABELS = (
    *("label", "labels", "class", "category", "intent", "sentiment", "emotion", "polarity", "topic", "target", "tag"),
    *("labelname", "labeltext", "classname", "labelid", "classid", "y"),
    *(
        "برچسب",
        "برچسبها",
        "دسته",
        "دسته بندی",
        "کلاس",
        "طبقه",
        "گروه",
        "احساس",
        "احساسات",
        "هیجان",
        "موضوع",
        "نیت",
        "قصد",
        "نوع",
    ),
)

MAX_LABEL_CHARS = 100


@dataclass(frozen=True, slots=True)
class ColumnHint:
    """What the first rows tell of a column; blank values are not counted."""

    name: str
    type: ColumnType
    num_filled: int
    mean_chars: float
    num_distinct: int


def map_columns(hints: Sequence[ColumnHint], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Role to column name; a role for which there is no column is absent.

    `given` wins. Text and label are looked for where it does not name them, but the second text is not, and nothing is
    when it names roles that no classification has (`tokens`, `summary`).
    """
    mapping = dict(given or {})
    if any(role not in ROLES for role in mapping):
        return mapping
    by_name: dict[str, str] = {}
    for hint in hints:
        if hint.name not in mapping.values():
            by_name.setdefault(_key(hint.name), hint.name)
    if "label" not in mapping:
        _take(mapping, "label", by_name, LABELS)
    if "text" not in mapping:
        _take_text(mapping, by_name, pairs="textPair" not in mapping)
    free = [hint for hint in hints if hint.name not in mapping.values() and hint.num_filled]
    if "text" not in mapping:
        texts = [hint for hint in free if hint.type == "string"]
        if texts:
            mapping["text"] = max(texts, key=lambda hint: hint.mean_chars).name
    if "label" not in mapping:
        labels = [hint for hint in reversed(free) if hint.name not in mapping.values() and _can_label(hint)]
        if labels:
            mapping["label"] = min(labels, key=lambda hint: hint.num_distinct).name
    return {role: mapping[role] for role in ROLES if role in mapping}


def task_of(mapping: Mapping[str, str], wanted: str | None, available: Sequence[str], file: str) -> str | None:
    """What can be trained with a mapping. Raises `ColumnNotFound` when classification is wanted and a role is missing.

    `available` are the columns and `file` is the file to name in that error. Another task is taken as it is wanted.
    """
    missing = [role for role in ("text", "label") if role not in mapping]
    if wanted != TEXT_CLASSIFICATION and wanted is not None:
        return wanted
    if wanted and missing:
        raise ColumnNotFound(
            column=missing[0],
            file=file,
            available=", ".join(available[:20]),
            details={"column": missing[0], "file": file, "available": list(available)},
        )
    return None if missing or any(role not in ROLES for role in mapping) else TEXT_CLASSIFICATION


def _key(name: str) -> str:
    return fold(name).replace("_", "").replace("-", "").replace(" ", "")


def _take(mapping: dict[str, str], role: str, by_name: Mapping[str, str], names: Sequence[str]) -> None:
    for name in names:
        column = by_name.get(_key(name))
        if column is not None and column not in mapping.values():
            mapping[role] = column
            return


def _take_text(mapping: dict[str, str], by_name: Mapping[str, str], *, pairs: bool) -> None:
    _take(mapping, "text", by_name, FIRST_TEXTS)
    if "text" in mapping:
        return
    if pairs:
        taken = set(mapping.values())
        for first, second in PAIRS:
            columns = by_name.get(_key(first)), by_name.get(_key(second))
            if columns[0] and columns[1] and not taken.intersection(columns):
                mapping["text"], mapping["textPair"] = columns[0], columns[1]
                return
    _take(mapping, "text", by_name, TEXTS)


def _can_label(hint: ColumnHint) -> bool:
    return (
        hint.type != "float"
        and hint.mean_chars <= MAX_LABEL_CHARS
        and 2 <= hint.num_distinct <= max(2, hint.num_filled // 2)
    )
