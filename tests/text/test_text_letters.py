"""Digits, folding, languages and sizes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kargah.text.digits import to_latin_digits, to_persian_digits
from kargah.text.fold import fold
from kargah.text.languages import from_accept_language, from_environment
from kargah.text.sizes import human_duration, human_size


def test_digits_of_three_scripts() -> None:
    assert to_persian_digits("گام 1203 از 45") == "گام ۱۲۰۳ از ۴۵"
    assert to_latin_digits("۱۲۳ ٤٥٦ 789") == "123 456 789"


@given(st.integers(min_value=0))
def test_digits_come_back(number: int) -> None:
    persian = to_persian_digits(str(number))
    assert persian.isdecimal()
    assert not persian.isascii()
    assert to_latin_digits(persian) == str(number)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("كتابي", "کتابی"),
        ("می‌روم", "میروم"),
        ("مـــدل", "مدل"),
        ("مُدَرِّس", "مدرس"),
        ("خانۀ", "خانه"),
        ("مؤسسه", "موسسه"),
        ("أمید", "امید"),
        ("ParsBERT ۲", "parsbert 2"),
        ("موسى", "موسی"),
    ],
)
def test_spellings_of_one_word_fold_to_one_key(one: str, other: str) -> None:
    assert fold(one) == fold(other)


def test_different_words_stay_different() -> None:
    assert fold("بار") != fold("یار")
    assert fold("مدل") != fold("مدال")


@given(st.text())
@example("İ")
@example("\u1100\u200c\u1161")
def test_folding_twice_changes_nothing(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "fa"),
        ("", "fa"),
        ("en", "en"),
        ("en-US,en;q=0.9", "en"),
        ("fa-IR,fa;q=0.9,en;q=0.8", "fa"),
        ("de, en;q=0.7, fa;q=0.3", "en"),
        ("de, fr", "fa"),
        ("en;q=0, fa;q=0.1", "fa"),
        ("en;q=0", "fa"),
        ("EN-gb;Q=1", "en"),
        ("en;q=broken, fa;q=0.2", "fa"),
        (";;;,,q=1", "fa"),
    ],
)
def test_the_language_of_a_header(header: str | None, language: str) -> None:
    assert from_accept_language(header) == language


def test_the_language_of_a_terminal() -> None:
    assert from_environment({"LANG": "fa_IR.UTF-8"}) == "fa"
    assert from_environment({"LANG": "C.UTF-8"}) == "en"
    assert from_environment({"LANG": "fa_IR.UTF-8", "KARGAH_LANG": "en"}) == "en"
    assert from_environment({}) == "en"


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(None, None), (0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2_100_000_000, "2.1 GB"), (999_999, "1.0 MB")],
)
def test_sizes_are_decimal(num_bytes: int | None, shown: str | None) -> None:
    assert human_size(num_bytes) == shown


def test_durations() -> None:
    assert human_duration(65) == "1:05"
    assert human_duration(4310) == "1:11:50"
