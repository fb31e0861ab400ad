"""Digits: Latin 0-9, Persian U+06F0-06F9 and Arabic U+0660-0669, one into the other."""

import re

_PERSIAN = "۰۱۲۳۴۵۶۷۸۹"
_ARABIC = "٠١٢٣٤٥٦٧٨٩"
_TO_PERSIAN = str.maketrans("0123456789", _PERSIAN)
_TO_LATIN = str.maketrans(_PERSIAN + _ARABIC, "0123456789" * 2)
_POINT = re.compile(r"(?<=[0-9])\.(?=[0-9])")


def to_persian_digits(text: str) -> str:
    """Every Latin digit as a Persian one; all else as it is."""
    return text.translate(_TO_PERSIAN)


def to_latin_digits(text: str) -> str:
    """Every Persian or Arabic digit as a Latin one; all else as it is."""
    return text.translate(_TO_LATIN)


def decimal_to_persian(text: str) -> str:
    """Persian digits, and U+066B for a point between two of them: `2.1 GB` → `۲٫۱ GB`."""
    return to_persian_digits(_POINT.sub("٫", text))
