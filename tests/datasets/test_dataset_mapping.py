"""Which column is the text, which the label; how rows are divided; which type a column has."""

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kargah.datasets.errors import ColumnNotFound
from kargah.datasets.mapping import LABELS, PAIRS, TEXTS, ColumnHint, map_columns, task_of
from kargah.datasets.splits import KEY_BYTES, UNUSABLE, choose_validation
from kargah.datasets.values import ColumnType, as_type, kind_of, label_text, type_of


def hint(
    name: str, type: ColumnType = "string", filled: int = 100, chars: float = 10, distinct: int = 100
) -> ColumnHint:
    return ColumnHint(name, type, filled, chars, distinct)


@pytest.mark.parametrize(
    ("names", "mapping"),
    [
        (["text", "label"], {"text": "text", "label": "label"}),
        (["متن", "برچسب"], {"text": "متن", "label": "برچسب"}),
        (["نظر", "دسته‌بندی"], {"text": "نظر", "label": "دسته‌بندی"}),
        (["كلاس", "جمله"], {"text": "جمله", "label": "كلاس"}),
        (["id", "Comment", "Label_ID"], {"text": "Comment", "label": "Label_ID"}),
        (["comment", "label_id", "label"], {"text": "comment", "label": "label"}),
        (["premise", "hypothesis", "label"], {"text": "premise", "textPair": "hypothesis", "label": "label"}),
        (["Sentence-1", "sentence 2", "class"], {"text": "Sentence-1", "textPair": "sentence 2", "label": "class"}),
        (["جملهٔ ۱", "جمله ۲", "کلاس"], {"text": "جملهٔ ۱", "textPair": "جمله ۲", "label": "کلاس"}),
        (["question", "answer", "text", "intent"], {"text": "text", "label": "intent"}),
        (["question", "intent"], {"text": "question", "label": "intent"}),
        (["utt", "sentiment"], {"text": "utt", "label": "sentiment"}),
    ],
)
def test_by_name(names: list[str], mapping: dict[str, str]) -> None:
    assert map_columns([hint(name) for name in names]) == mapping


@pytest.mark.parametrize("name", [*TEXTS, *LABELS])
def test_every_name_of_the_tables_is_found(name: str) -> None:
    assert name in map_columns([hint(name), hint("other", chars=500)]).values()


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_of_the_table_is_found(pair: tuple[str, str]) -> None:
    found = map_columns([hint(pair[1]), hint(pair[0])])
    assert (found["text"], found["textPair"]) == pair


def test_by_content() -> None:
    columns = [
        hint("a", chars=3, distinct=100),
        hint("b", chars=80),
        hint("c", "int", distinct=4),
        hint("d", distinct=4),
    ]
    assert map_columns(columns) == {"text": "b", "label": "d"}
    assert map_columns([hint("a", chars=80), hint("b", "float", distinct=2)]) == {"text": "a"}
    assert map_columns([hint("a", "int", distinct=100)]) == {}
    assert map_columns([hint("a", chars=80), hint("b", filled=4, distinct=3)]) == {"text": "a"}
    assert map_columns([hint("a", chars=80), hint("b", distinct=1)]) == {"text": "a"}


def test_given_columns_win() -> None:
    columns = [hint("text"), hint("label"), hint("x"), hint("y")]
    assert map_columns(columns, {"text": "x", "label": "y"}) == {"text": "x", "label": "y"}
    assert map_columns(columns, {"text": "label"}) == {"text": "label", "label": "y"}
    assert map_columns(columns, {"label": "text"})["text"] != "text"
    assert map_columns(columns, {"tokens": "text", "tags": "label"}) == {"tokens": "text", "tags": "label"}


def test_task() -> None:
    assert task_of({"text": "a", "label": "b"}, None, [], "f") == "text-classification"
    assert task_of({"text": "a"}, None, [], "f") is None
    assert task_of({"tokens": "a", "tags": "b"}, None, [], "f") is None
    assert task_of({"tokens": "a"}, "token-classification", [], "f") == "token-classification"
    with pytest.raises(ColumnNotFound) as raised:
        task_of({"text": "a"}, "text-classification", ["a", "b"], "f")
    assert raised.value.params["column"] == "label"


def test_types() -> None:
    def found(*values: object) -> str:
        return type_of({kind for value in values if (kind := kind_of(value)) is not None})

    assert found(1, None, 2**60) == "int"
    assert found(1, 0.5) == "float"
    assert found(2**60, 0.5) == "string"
    assert found(2**70) == "string"
    assert found(True, False) == "bool"
    assert found(True, 1) == "string"
    assert found("1", 1) == "string"
    assert found({"a": 1}) == "string"
    assert found(None) == "string"
    assert as_type(1, "string") == "1"
    assert as_type({"الف": [True, None]}, "string") == '{"الف": [true, null]}'
    assert as_type(" 01 ", "string") == " 01 "
    assert [label_text(value) for value in (1, 1.0, 1.5, True, " x")] == ["1", "1", "1.5", "True", " x"]


def keys_of(texts: list[int]) -> bytes:
    return b"".join(random.Random(text).randbytes(KEY_BYTES) for text in texts)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(UNUSABLE, 3)), max_size=200))
def test_a_text_never_straddles(rows: list[tuple[int, int]]) -> None:
    mask = choose_validation(keys_of([text for text, _ in rows]), array("i", [label for _, label in rows]))
    sides: dict[int, set[bool]] = {}
    for (text, label), chosen in zip(rows, mask, strict=True):
        if label != UNUSABLE:
            sides.setdefault(text, set()).add(bool(chosen))
    assert all(len(side) == 1 for side in sides.values())
    usable = [chosen for (_, label), chosen in zip(rows, mask, strict=True) if label != UNUSABLE]
    if usable:
        assert not all(usable)


@given(st.lists(st.integers(0, 3), max_size=200), st.randoms(use_true_random=False))
def test_a_tenth_of_each_label_whatever_the_order(labels: list[int], rng: random.Random) -> None:
    rows = list(enumerate(labels))
    chosen = {}
    for attempt in range(2):
        mask = choose_validation(keys_of([text for text, _ in rows]), array("i", [label for _, label in rows]))
        chosen[attempt] = {row for row, bit in zip(rows, mask, strict=True) if bit}
        rng.shuffle(rows)
    assert chosen[0] == chosen[1]
    for label in range(4):
        wanted = (labels.count(label) + 5) // 10
        assert sum(found == label for _, found in chosen[0]) == wanted


def test_groups_larger_than_a_tenth() -> None:
    # Two texts, repeated: the smaller group goes, for one row is wanted and none is smaller.
    assert bytes(choose_validation(keys_of([1, 1, 1, 2, 2]), array("i", [0] * 5))) == bytes([0, 0, 0, 1, 1])
    assert not any(choose_validation(keys_of([1] * 50), array("i", [0] * 50)))
    assert not any(choose_validation(keys_of([1, 2, 3, 4]), array("i", [0] * 4)))
