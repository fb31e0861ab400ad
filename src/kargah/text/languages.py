"""Which of the two languages a person reads, from an `Accept-Language` header or from the environment's locale."""

import os
import re
from collections.abc import Mapping
from typing import Literal

Language = Literal["fa", "en"]
LANGUAGES: tuple[Language, ...] = ("fa", "en")
DEFAULT: Language = "fa"

_PERSIAN = ("fa", "fas", "per", "persian", "farsi")
"""ISO 639-1, 639-2/T, 639-2/B, and what people write in their place."""


def from_accept_language(header: str | None) -> Language:
    """The best match of an `Accept-Language` header (RFC 9110, 12.5.4); Persian where it is absent or names neither."""
    best: tuple[float, Language] | None = None
    for item in (header or "").split(","):
        tag, _, quality = item.partition(";")
        primary = tag.strip().lower().split("-")[0]
        weight = _quality(quality)
        for language in LANGUAGES:
            if primary == language and weight > 0 and (best is None or weight > best[0]):
                best = (weight, language)
    return best[1] if best else DEFAULT


def from_environment(environ: Mapping[str, str] | None = None) -> Language:
    """The language of a terminal: `KARGAH_LANG`, else the locale of messages, for which the first of `LC_ALL`,
    `LC_MESSAGES` and `LANG` counts that is not empty (POSIX.1-2017, XBD 8.2). `fa_IR.UTF-8` is Persian, all else
    English: `C`, `POSIX`, and no locale at all."""
    environ = os.environ if environ is None else environ
    for name in ("KARGAH_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = environ.get(name)
        if value:
            return "fa" if re.split(r"[_.@-]", value.lower())[0] in _PERSIAN else "en"
    return "en"


def _quality(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if name != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
