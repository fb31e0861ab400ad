"""The report: facts as lines of Latin letters and digits in a fenced block, and nothing in it that names a person.

`Veil` takes out what could: home and data directories, user and host names, tokens. Facts are made without them; the
veil is for the words of libraries and of the system, which quote paths as they like.
"""

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kargah.ground.settings import SECRET_VARIABLES, Settings
from kargah.hub.endpoint import origin_of
from kargah.text.sizes import human_size

FENCE = "```"
_LABEL_CELLS = 34
_MAX_SHOWN_NUMBERS = 6
_OWN_WORDS = frozenset(
    {"kargah", "root", "localhost", "linux", "darwin", "python", "torch", "cpu", "cuda", "hub", "doctor"}
)
"""A user or a host of such a name is not told by it, and the report is full of them."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TOKEN_SHAPE = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_OTHER_PATH = re.compile(r"(?<![\w~>:/.…])/(?:[^\s/:;,'\"]+/)+(?=[^\s/:;,'\"])")
"""Any other absolute path, up to its last part."""


class Veil:
    """Replaces what must not leave the machine, in every string of a value."""

    def __init__(self, settings: Settings | None) -> None:
        self._parts = [(re.compile(pattern), shown) for pattern, shown in _secrets(settings)]

    def over(self, value: Any) -> Any:
        """The value again, with its strings (not the names of its fields) veiled."""
        if isinstance(value, str):
            for pattern, shown in self._parts:
                value = pattern.sub(shown, value)
            return _OTHER_PATH.sub("…/", _URL_CREDENTIALS.sub("", _TOKEN_SHAPE.sub("<token>", value)))
        if isinstance(value, dict):
            return {name: self.over(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.over(inner) for inner in value]
        return value


def as_text(facts: dict[str, Any]) -> str:
    """The facts as a fenced block: a section for each object at the top, one field a line."""
    lines = [FENCE, "kargah doctor --full"]
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += _section(name, value)
        else:
            lines.append(_line(_words(name), _shown(name, value)))
    return "\n".join([*lines, FENCE])


def _section(title: str, facts: dict[str, Any]) -> list[str]:
    lines = ["", f"[{_words(title)}]"]
    later: list[str] = []
    for name, value in facts.items():
        if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            for number, entry in enumerate(value, start=1):
                later += _section(str(entry.get("name") or f"{title} {name} {number}"), entry)
        else:
            lines += [_line(label, text) for label, text in _fields(name, value, facts)]
    return lines + later


def _fields(name: str, value: Any, owner: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of each line that a fact makes."""
    if name == "unmeasured":
        return
    if value is None:
        reason = owner.get("unmeasured", {}).get(name)
        yield _words(name), f"not measured: {reason}" if reason else "none"
    elif isinstance(value, dict):
        for inner, content in value.items():
            for label, text in _fields(inner, content, value):
                yield f"{_words(name)} {label}", text
    else:
        yield _words(name), _shown(name, value)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return _shown_list(value)
    if isinstance(value, int | float):
        return _shown_number(name, value)
    return str(value)


def _shown_list(values: list[Any]) -> str:
    texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    if len(texts) > _MAX_SHOWN_NUMBERS and all(isinstance(value, float) for value in values):
        half = _MAX_SHOWN_NUMBERS // 2
        texts = [*texts[:half], "…", *texts[-half:]]
    return ", ".join(texts) or "none"


def _shown_number(name: str, value: float) -> str:
    if name.endswith("BytesPerSecond") or name == "bytesPerSecond":
        return f"{human_size(int(value))}/s"
    if name.endswith("Bytes"):
        return human_size(int(value)) or ""
    if name.endswith("Gflops"):
        return f"{value:.1f} GFLOP/s"
    if name.endswith(("Seconds", "seconds")):
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.2f} ms"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _words(name: str) -> str:
    """`medianStepSeconds` → `median step`; `isFinite` → `finite`."""
    words = [word.lower() for word in _CAMEL.split(name)]
    while len(words) > 1 and words[-1] in ("seconds", "bytes", "gflops"):
        words.pop()
    if words[-2:] == ["per", "second"] and name != "samplesPerSecond":
        words = [*words[:-3], "speed"]
    if len(words) > 1 and words[0] in ("is", "num"):
        words.pop(0)
    return " ".join(words)


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL_CELLS}} {text}"


def _secrets(settings: Settings | None) -> Iterator[tuple[str, str]]:
    """Patterns and what stands in their place; longer names before those that they hold."""
    tokens = {os.environ.get(name, "") for name in SECRET_VARIABLES}
    machine = {socket.gethostname(), os.environ.get("HOSTNAME", "")}
    hosts = machine | {name.partition(".")[0] for name in machine}
    paths = [(Path.home(), "~"), (Path(sys.prefix), "<python>"), (Path(tempfile.gettempdir()), "<temporary>")]
    if settings is not None:
        tokens |= settings.secrets
        hosts |= {origin_of(url)[1] for url in (*settings.hub_endpoint, settings.url)}
        paths.append((settings.home, "<KARGAH_HOME>"))
    for token in tokens:
        if len(token) > 3:
            yield re.escape(token), "<token>"
    places = {(str(spelling), shown) for path, shown in paths for spelling in (path, path.resolve())}
    for place, shown in sorted(places, key=lambda pair: len(pair[0]), reverse=True):
        if len(place) > 1:
            yield rf"{re.escape(place)}(?![\w-])", shown
    users = {os.environ.get("USER", ""), os.environ.get("LOGNAME", ""), _user()}
    names = [*((host, "<host>") for host in hosts), *((user, "<user>") for user in users)]
    for name, shown in sorted(names, key=lambda pair: len(pair[0]), reverse=True):
        if len(name) > 1 and name.lower() not in _OWN_WORDS and not name.isdigit():
            yield rf"(?i)(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", shown


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""  # a container may run under a number without a name
