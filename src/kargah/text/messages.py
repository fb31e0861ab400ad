"""Sentences for people, by key and language, from `messages/fa/*.json` and `messages/en/*.json`
(one file a room).

A sentence may hold `{name}` placeholders; for a number with a format of Python's behind it (`{share:.2%}`,
`{seconds:.2f}`, `{numRows:,}`), or `size` for bytes (`{neededBytes:size}`). Integers and floats put into a Persian
sentence get Persian digits and signs; strings (ids, columns, codes) stay as they are, each isolated (FSI … PDI) so
that a Latin id does not turn the sentence around. Of a list each part is shown.
"""

import json
import string
from functools import cache
from importlib import resources
from typing import Any

from kargah.text.digits import decimal_to_persian
from kargah.text.languages import Language
from kargah.text.sizes import human_size

FSI, PDI = "\u2068", "\u2069"
_PERSIAN_SIGNS = str.maketrans({",": "٬", "%": "٪"})
_PERSIAN_UNITS = {
    "B": "بایت",
    "KB": "کیلوبایت",
    "MB": "مگابایت",
    "GB": "گیگابایت",
    "TB": "ترابایت",
    "PB": "پتابایت",
}


class Sentence:
    """A sentence inside another: given as a parameter, it is translated with it."""

    def __init__(self, key: str, /, **params: Any) -> None:
        self.key = key
        self.params = params

    def __repr__(self) -> str:
        return f"{self.key}({self.params})" if self.params else self.key


class UnknownMessage(KeyError):
    """There is no sentence under this key."""


def translate(key: str, language: Language, /, **params: Any) -> str:
    """The sentence under `key`. Raises `UnknownMessage`, and `KeyError` when a placeholder has no value."""
    try:
        sentence = catalog(language)[key]
    except KeyError:
        raise UnknownMessage(key) from None
    return sentence.format_map({name: _Shown(value, language) for name, value in params.items()})


def has(key: str, language: Language) -> bool:
    """Whether a sentence exists under `key`."""
    return key in catalog(language)


@cache
def catalog(language: Language) -> dict[str, str]:
    """Every sentence of one language by key."""
    sentences: dict[str, str] = {}
    folder = resources.files("kargah.text").joinpath("messages", language)
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            sentences.update(json.loads(file.read_text(encoding="utf-8")))
    return sentences


def placeholders(sentence: str) -> set[str]:
    """Names of the placeholders in a sentence."""
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


class _Shown:
    """A value on its way into a sentence."""

    def __init__(self, value: Any, language: Language) -> None:
        self._value = value
        self._language = language

    def __format__(self, spec: str) -> str:
        return _shown(self._value, self._language, spec)


def _shown(value: Any, language: Language, spec: str) -> str:
    if isinstance(value, Sentence):
        return translate(value.key, language, **value.params)
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float) and spec == "size":
        amount, unit = (human_size(int(value)) or "").split(" ")
        return f"{decimal_to_persian(amount)} {_PERSIAN_UNITS[unit]}" if language == "fa" else f"{amount} {unit}"
    if isinstance(value, int | float):
        number = format(value, spec) if spec else str(value)
        if language != "fa":
            return number
        persian = decimal_to_persian(number).translate(_PERSIAN_SIGNS)
        # Digits alone do not hold a minus in front of them when the line runs from right to left.
        return f"{FSI}{persian}{PDI}" if value < 0 else persian
    if isinstance(value, list | tuple):
        return ("، " if language == "fa" else ", ").join(_shown(part, language, spec) for part in value)
    # Nothing needs no isolation.
    return f"{FSI}{value}{PDI}" if language == "fa" and str(value) else str(value)
