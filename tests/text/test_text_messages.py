"""Every sentence exists in both languages, with the same placeholders, once, and for every code a person may meet."""

import json
from importlib import import_module, resources

import pytest

from kargah.ground.errors import every_error
from kargah.hub.errors import DOWNLOAD_CODES
from kargah.runs.errors import EXIT_CODES
from kargah.text.languages import LANGUAGES, Language
from kargah.text.messages import FSI, PDI, UnknownMessage, catalog, has, placeholders, translate

ROOMS_WITH_ERRORS = ("ground.home", "ground.migrate", "assets.errors", "datasets.errors", "runs.errors")
for room in ROOMS_WITH_ERRORS:
    import_module(f"kargah.{room}")


def test_both_languages_have_the_same_keys() -> None:
    assert set(catalog("fa")) == set(catalog("en"))
    assert len(catalog("fa")) > 100


@pytest.mark.parametrize("key", sorted(catalog("en")))
def test_both_sentences_name_the_same_things(key: str) -> None:
    assert placeholders(catalog("fa")[key]) == placeholders(catalog("en")[key])
    assert catalog("fa")[key].strip()


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_key_stands_twice(language: Language) -> None:
    """Which of two would win depends on the order of a directory."""
    seen: dict[str, str] = {}
    for file in resources.files("kargah.text").joinpath("messages", language).iterdir():
        pairs = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=list)
        for key, _ in pairs:
            assert key not in seen, f"{key} stands in {seen.get(key)} and in {file.name}"
            seen[key] = file.name


@pytest.mark.parametrize("code", sorted({cls.code for cls in every_error()} | {*DOWNLOAD_CODES} | {*EXIT_CODES}))
def test_every_code_has_a_sentence(code: str) -> None:
    for language in LANGUAGES:
        assert has(f"error.{code}", language)


@pytest.mark.parametrize("code", DOWNLOAD_CODES)
def test_an_ending_of_a_download_needs_no_placeholder_it_may_not_have(code: str) -> None:
    """The last event of a stream is made with the asset's id and what the worker said, which may be nothing."""
    assert placeholders(catalog("en")[f"error.{code}"]) <= {"id"}


def test_persian_sentences_are_persian() -> None:
    plain = [key for key, text in catalog("fa").items() if not any("\u0600" <= letter <= "\u06ff" for letter in text)]
    assert all(key.startswith(("cli.phase", "cli.doctor", "cli.column", "cli.demo")) for key in plain), plain


def test_numbers_become_persian_and_ids_are_isolated() -> None:
    said = translate("problem.atLeast", "fa", bound=1203)
    assert "۱۲۰۳" in said
    assert "1203" not in said
    assert "۲٫۵" in translate("problem.atLeast", "fa", bound=2.5)
    assert f"{FSI}org/name7{PDI}" in translate("error.ASSET_NOT_FOUND", "fa", id="org/name7")
    assert "org/name7" in translate("error.ASSET_NOT_FOUND", "en", id="org/name7")


def test_a_number_is_shown_as_its_placeholder_says() -> None:
    wanted = {"vocabularySize": 12345, "numGlossed": 7}
    assert "12,345 pieces" in translate("log.vocabularyGrafted", "en", **wanted)
    assert "۱۲٬۳۴۵ تکه" in translate("log.vocabularyGrafted", "fa", **wanted)
    shares = {"unknownShare": 0.01234, "truncatedShare": 0}
    assert "1.23% unknown tokens, 0.00% cut" in translate("log.trainTokenised", "en", **shares)
    assert "۱٫۲۳٪" in translate("log.trainTokenised", "fa", **shares)
    assert f"{FSI}-۹{PDI}" in translate("log.attemptDied", "fa", attempt=1, exitCode=-9)
    # What has no number is shown as it is.
    assert "loss NaN" in translate("log.evaluated", "en", step=1, accuracy=0.5, valLoss="NaN")


def test_each_part_of_a_list_is_shown() -> None:
    assert translate("log.newWeights", "en", names=["a", "b"]).endswith("a, b")
    assert translate("log.newWeights", "fa", names=["a", "b"]).endswith(f"{FSI}a{PDI}، {FSI}b{PDI}")


def test_an_unknown_key_is_said() -> None:
    with pytest.raises(UnknownMessage):
        translate("error.NEVER_HEARD_OF", "fa")
