"""The error book, `docs/errors.md`: every code a person or a program can meet, where, why, and what mends it.

    python -m kargah.app.error_book                          prints it
    python -m kargah.app.error_book --write docs/errors.md   writes it

Which codes there are, and where, the code itself says: the classes below `KargahError`, the endings that the hub and
the runs room list, and the OpenAPI document of a server on an empty data directory. The sentences are the messages';
cause and cure of `<CODE>` stand beside them under `book.<CODE>.cause` and `book.<CODE>.cure`.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import kargah
from kargah.app import setup
from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.datasets import errors as dataset_errors
from kargah.ground.errors import CannotStart, Conflict, KargahError, NotFound, every_error
from kargah.ground.settings import Settings
from kargah.hub.errors import DOWNLOAD_CODES
from kargah.runs.errors import EXIT_CODES
from kargah.text.digits import to_persian_digits
from kargah.text.languages import LANGUAGES, Language
from kargah.text.messages import FSI, PDI, catalog, has, placeholders, translate

NAMES: dict[Language, str] = {"fa": "فارسی", "en": "English"}


class Place(StrEnum):
    """Where a code appears; also the order of the book's parts."""

    START = "start"
    REQUEST = "request"
    TRANSFER = "transfer"
    RUN = "run"
    SETUP = "setup"
    FAMILY = "family"


@dataclass(frozen=True, slots=True)
class Entry:
    """A code with its places, in the order of `Place`, and the HTTP statuses it is answered with."""

    code: str
    places: tuple[Place, ...]
    statuses: tuple[int, ...]


def every_entry() -> list[Entry]:
    """Every code that this version knows, by its name."""
    _import_rooms()
    classes = [cls for cls in every_error() if cls.__module__.startswith("kargah.")]
    documented = documented_codes()
    places: dict[str, set[Place]] = {code: {Place.TRANSFER} for code in DOWNLOAD_CODES}
    for code in EXIT_CODES:
        places.setdefault(code, set()).add(Place.RUN)
    statuses: dict[str, set[int]] = {}
    for cls in classes:
        found = set(_places_of(cls, documented))
        places.setdefault(cls.code, set()).update(found)
        if Place.REQUEST in found or (Place.FAMILY in found and not issubclass(cls, CannotStart)):
            statuses.setdefault(cls.code, set()).add(cls.status)
    return [
        Entry(code, tuple(place for place in Place if place in places[code]), tuple(sorted(statuses.get(code, ()))))
        for code in sorted(places)
    ]


def documented_codes() -> set[str]:
    """Codes that the OpenAPI document names in the descriptions of its responses."""
    with TemporaryDirectory() as folder:
        # What decides on files and databases is given, so that nobody's own are touched.
        platform = Platform(Settings(home=Path(folder), database_url=None, catalog=None))
        try:
            document = Application(platform).api.openapi()
        finally:
            platform.database.close()
            platform.home.release()
    return {
        code
        for operations in document["paths"].values()
        for operation in operations.values()
        for response in operation["responses"].values()
        for code in re.findall(r"`([A-Z][A-Z_]+)`", response["description"])
    }


def book() -> str:
    """The whole book as Markdown, first in Persian, then in English."""
    entries = every_entry()
    lines = [f"# {' · '.join(translate('book.heading', language) for language in LANGUAGES)}", ""]
    lines += [" · ".join(f"[{NAMES[language]}](#{language})" for language in LANGUAGES), ""]
    for language in LANGUAGES:
        part = [f'## <a id="{language}"></a>{NAMES[language]}', "", *_part(entries, language)]
        lines += ['<div dir="rtl">', "", *part, "</div>", ""] if language == "fa" else part
    return "\n".join(lines).rstrip("\n") + "\n"


def main(arguments: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m kargah.app.error_book", description="Make the error book.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write it there instead of printing it")
    file: Path | None = parser.parse_args(arguments).write
    if file is None:
        sys.stdout.write(book())
    else:
        file.write_text(book(), encoding="utf-8")


def _import_rooms() -> None:
    # A class exists once its module is imported, and no room need be imported by another.
    package = Path(kargah.__file__).parent
    for file in sorted(package.rglob("errors.py")):
        import_module(".".join(("kargah", *file.relative_to(package).with_suffix("").parts)))


def _places_of(cls: type[KargahError], documented: set[str]) -> Iterator[Place]:
    # A class with narrower ones beside it is what these have in common, unless a route says that it sends it.
    is_family = any(narrower.__module__ == cls.__module__ for narrower in cls.__subclasses__())
    if is_family and cls is not KargahError and cls.code not in documented:
        yield Place.FAMILY
    elif issubclass(cls, CannotStart):
        yield Place.SETUP if cls.__module__.startswith(setup.__name__) else Place.START
    elif _ends_imports(cls):
        yield Place.TRANSFER
        if cls.code in documented:
            yield Place.REQUEST
    else:
        yield Place.REQUEST


def _ends_imports(cls: type[KargahError]) -> bool:
    """Whether it tells what is wrong inside a file: files are read when the request was answered long ago."""
    return cls.__module__ == dataset_errors.__name__ and not issubclass(cls, Conflict | NotFound)


def _part(entries: list[Entry], language: Language) -> Iterator[str]:
    yield from (_text("book.intro", language), "")
    for place in Place:
        here = [entry for entry in entries if place in entry.places]
        if here:
            links = " · ".join(f"[`{entry.code}`](#{_anchor(entry, language)})" for entry in here)
            yield f"- **{translate(f'book.{place}', language)}**: {links}"
    for place in Place:
        # A code that appears in several places has one entry, at the first of them.
        own = [entry for entry in entries if entry.places[0] is place]
        if own:
            yield from ("", f"### {translate(f'book.{place}', language)}", "")
            yield _text(f"book.{place}.about", language)
        for entry in own:
            yield from ("", *_entry(entry, language))
    yield ""


def _entry(entry: Entry, language: Language) -> Iterator[str]:
    yield f'#### <a id="{_anchor(entry, language)}"></a>`{entry.code}`'
    yield ""
    where = ("؛ " if language == "fa" else "; ").join(_where(entry, place, language) for place in entry.places)
    yield f"- **{translate('book.appears', language)}:** {where}"
    of_run = f"run.{entry.code}"
    if not (has(of_run, language) and entry.places == (Place.RUN,)):
        yield f"- **{translate('book.message', language)}:** {_sentence(f'error.{entry.code}', language)}"
    if has(of_run, language) and Place.RUN in entry.places:
        yield f"- **{translate('book.messageOfRun', language)}:** {_sentence(of_run, language)}"
    for name in ("cause", "cure"):
        yield f"- **{translate(f'book.{name}', language)}:** {_text(f'book.{entry.code}.{name}', language)}"


def _where(entry: Entry, place: Place, language: Language) -> str:
    if place is Place.FAMILY and not entry.statuses:
        return translate("book.family.startWhere", language)
    status = ", ".join(map(str, entry.statuses))
    shown = to_persian_digits(status) if language == "fa" else status
    return catalog(language)[f"book.{place}.where"].format(status=shown)


def _sentence(key: str, language: Language) -> str:
    """A message on one line, with words in place of its placeholders, and with no sign that Markdown would take."""
    sentence = catalog(language)[key]
    words = {name: f"‹{translate(f'book.word.{name}', language)}›" for name in placeholders(sentence)}
    return re.sub(r"[*<]", r"\\\g<0>", " ".join(sentence.format(**words).split()))


def _text(key: str, language: Language) -> str:
    """A text of the book. In Persian what stands in backticks is isolated, so that its signs keep their places."""
    text = translate(key, language)
    return re.sub(r"`[^`]+`", rf"{FSI}\g<0>{PDI}", text) if language == "fa" else text


def _anchor(entry: Entry, language: Language) -> str:
    return f"{language}-{entry.code.lower()}"


if __name__ == "__main__":
    main()
