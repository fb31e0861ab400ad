"""Folding for search: two spellings that a Persian reader takes for the same word become the same key.

Only for comparing; what is shown or stored is never folded. Arabic yeh (U+064A), alef maksura (U+0649) and kaf (U+0643)
become their Persian forms, ZWNJ (U+200C), other invisible controls, kashida and diacritics vanish, digits become Latin,
case is folded.
"""

import unicodedata

from kargah.text.digits import to_latin_digits

_LETTERS = str.maketrans({"ي": "ی", "ى": "ی", "ك": "ک", "ۀ": "ه", "ة": "ه", "أ": "ا", "إ": "ا", "ؤ": "و", "ـ": None})


def fold(text: str) -> str:
    """The search key of `text`. Idempotent."""
    # What one pass takes away can let letters meet that the next one joins, and folding case brings new diacritics.
    while (key := _folded(text)) != text:
        text = key
    return text


def _folded(text: str) -> str:
    composed = unicodedata.normalize("NFKC", text).translate(_LETTERS)
    kept = "".join(c for c in composed if unicodedata.category(c) not in ("Mn", "Cf"))
    return to_latin_digits(kept).casefold()
