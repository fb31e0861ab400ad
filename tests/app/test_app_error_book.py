"""The error book tells of every code, in both languages, why it comes and what mends it; `docs/errors.md` is fresh."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from kargah.app.error_book import Entry, Place, book, every_entry, main
from kargah.app.server import Application
from kargah.compute.failures import Code
from kargah.ground.errors import every_error
from kargah.hub.errors import DOWNLOAD_CODES
from kargah.runs.errors import EXIT_CODES
from kargah.text.languages import LANGUAGES
from kargah.text.messages import catalog, has, translate

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return {entry.code: entry for entry in every_entry()}


@pytest.fixture
def document(application: Application) -> FastAPI:
    return application.api


def test_the_page_is_fresh() -> None:
    assert (DOCS / "errors.md").read_text(encoding="utf-8") == book(), "run: make docs"


def test_it_is_written_and_printed_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    main(["--write", str(tmp_path / "errors.md")])
    assert (tmp_path / "errors.md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_every_code_is_in_it(entries: dict[str, Entry]) -> None:
    ours = {cls.code for cls in every_error() if cls.__module__.startswith("kargah.")}
    assert set(entries) == ours | {*DOWNLOAD_CODES} | {*EXIT_CODES}
    assert {code.value for code in Code} <= set(entries), "what the training program ends with"


def test_no_class_with_a_code_stands_where_the_book_does_not_look(entries: dict[str, Entry]) -> None:
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "src" / "kargah").rglob("*.py")]
    assigned = {
        code for source in sources for code in re.findall(r'^    code(?:, status)? = "([A-Z_]+)"', source, re.M)
    }
    assert len(assigned) > 40
    assert assigned - set(entries) == set()


def test_every_documented_code_is_in_it(entries: dict[str, Entry], document: FastAPI) -> None:
    said = [
        response["description"]
        for operations in document.openapi()["paths"].values()
        for operation in operations.values()
        for response in operation["responses"].values()
    ]
    codes = {code for text in said for code in re.findall(r"`([A-Z][A-Z_]+)`", text)}
    assert len(codes) > 20
    assert {code for code in codes if code not in entries or Place.REQUEST not in entries[code].places} == set()


def test_every_code_has_a_cause_and_a_cure_in_both_languages(entries: dict[str, Entry]) -> None:
    lacking = {f"book.{code}.{name}" for code in entries for name in ("cause", "cure") if not all(map_has(code, name))}
    assert lacking == set()


def map_has(code: str, name: str) -> list[bool]:
    key = f"book.{code}.{name}"
    return [has(key, language) and bool(translate(key, language).strip()) for language in LANGUAGES]


def test_cause_and_cure_are_two_things(entries: dict[str, Entry]) -> None:
    for language in LANGUAGES:
        texts = [translate(f"book.{code}.{name}", language) for code in entries for name in ("cause", "cure")]
        alike = {text for text in texts if texts.count(text) > 1}
        assert {code for code in entries if translate(f"book.{code}.cause", language) in alike} == set()


def test_it_tells_of_no_code_that_is_gone(entries: dict[str, Entry]) -> None:
    told = {match[1] for key in catalog("en") if (match := re.fullmatch(r"book\.([A-Z][A-Z_]+)\.(?:cause|cure)", key))}
    assert told - set(entries) == set()


def test_both_languages_name_the_same_settings_and_fields(entries: dict[str, Entry]) -> None:
    """What stands in backticks is for a machine, so it is not translated."""
    for code in entries:
        for name in ("cause", "cure"):
            fa, en = (set(re.findall(r"`([^`]+)`", translate(f"book.{code}.{name}", lang))) for lang in LANGUAGES)
            assert {token for token in fa ^ en if re.search(r"[A-Za-z]", token)} == set(), f"{code}.{name}"


def test_places(entries: dict[str, Entry]) -> None:
    def places(code: str) -> tuple[tuple[Place, ...], tuple[int, ...]]:
        return entries[code].places, entries[code].statuses

    assert places("HOME_IN_USE") == ((Place.START,), ())
    assert places("IN_USE") == ((Place.REQUEST,), (409,))
    assert places("BAD_QUOTE") == ((Place.TRANSFER,), ())
    assert places("EMPTY_DATA") == ((Place.REQUEST, Place.TRANSFER, Place.RUN), (400,))
    assert places("DISK_FULL") == ((Place.REQUEST, Place.TRANSFER, Place.RUN), (507,))
    assert places("HUB_UNREACHABLE") == ((Place.TRANSFER,), ())
    assert places("RUN_LOST") == ((Place.RUN,), ())
    assert places("CONFLICT") == ((Place.FAMILY,), (409,))
    assert places("CANNOT_START") == ((Place.FAMILY,), ())


def test_the_page_reads_well(entries: dict[str, Entry]) -> None:
    text = book()
    assert re.search(r"\{\w+\}", text) is None, "a placeholder was left"
    anchors = re.findall(r'<a id="([^"]+)">', text)
    assert len(anchors) == len(set(anchors)) == 2 * len(entries) + 2
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == set(anchors)
    before, rest = text.split('<div dir="rtl">\n\n')
    persian, english = rest.split("\n</div>\n")
    assert "علت" not in before + english
    assert "**Cause:**" not in persian
    for place in Place:
        assert f"\n### {translate(f'book.{place}', 'fa')}\n" in persian
        assert f"\n### {translate(f'book.{place}', 'en')}\n" in english


def test_what_a_text_sends_to_is_there(entries: dict[str, Entry], document: FastAPI) -> None:
    """Documents, addresses and verbs that the cures name exist."""
    paths = {re.sub(r"\{[^}]+\}", "…", path) for path in document.openapi()["paths"]} | {"/api/docs"}
    tokens = [token for key, text in catalog("en").items() if key.startswith("book.") for token in _code_in(text)]
    for token in tokens:
        if token.startswith("docs/"):
            assert (ROOT / token).is_file(), token
        elif match := re.fullmatch(r"(?:[A-Z]+ )?(/api/\S+)", token):
            assert match[1] in paths, token


def _code_in(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)
