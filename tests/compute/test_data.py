"""Reading, uniting and splitting rows."""

import dataclasses
from pathlib import Path

import pytest

from kargah.compute.data import Rows, label_text, read_training_data, split_by_content
from kargah.compute.sink import Log
from kargah.spec.run_spec import DatasetRef, ModelRef, RunSpec, TrainConfig

from .tiny import ListSink, sentences, write_split


def spec_of(*datasets: DatasetRef, **config: object) -> RunSpec:
    made = dataclasses.replace(TrainConfig(), **config)  # type: ignore[arg-type]
    return RunSpec("r", "r", "text-classification", ModelRef("m", "/nowhere"), list(datasets), made)


def test_split_by_content_is_the_same_every_time_stratified_and_without_leaks() -> None:
    texts, labels = sentences(400, seed=5)
    rows = Rows(texts, [], labels)
    train, validation = split_by_content(rows, 0.2)
    shuffled = rows.take(sorted(range(400), key=lambda number: texts[number]))
    _, again = split_by_content(shuffled, 0.2)
    assert sorted(validation.texts) == sorted(again.texts)
    assert len(train) + len(validation) == 400
    assert not set(train.texts) & set(validation.texts)
    for label in set(labels):
        share = validation.labels.count(label) / labels.count(label)
        assert 0.15 < share < 0.27


def test_split_by_content_never_takes_the_only_text_of_a_label() -> None:
    rows = Rows(["الف", "ب", "پ", "ت"], [], ["x", "x", "x", "y"])
    train, validation = split_by_content(rows, 0.5)
    assert "y" in train.labels
    assert validation.labels == ["x", "x"]


def test_labels_are_united_and_columns_of_the_config_win(tmp_path: Path) -> None:
    write_split(tmp_path / "a", "train", {"text": ["۱", "۲"], "wrong": ["z", "z"], "label": ["بد", "خوب"]})
    write_split(tmp_path / "b", "train", {"text": ["۳", None], "wrong": ["z", "z"], "label": ["می‌شود", "خوب"]})
    roles = {"text": "text", "label": "wrong"}
    datasets = [DatasetRef(name, str(tmp_path / name), "v", roles) for name in ("a", "b")]
    sink = ListSink()
    data = read_training_data(spec_of(*datasets, columns={"label": "label"}, validation_split=0.0), Log(sink))
    assert data.labels == ["بد", "خوب", "می‌شود"]
    assert data.train.texts == ["۱", "۲", "۳"]
    assert "left out" in sink.messages()


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ([["b", "a"], ["b", "a"]], ["b", "a"]),
        ([["b", "a"], ["a", "b"]], ["a", "b"]),
        ([[], []], ["a", "b"]),
    ],
)
def test_declared_order_counts_when_all_agree(tmp_path: Path, declared: list[list[str]], expected: list[str]) -> None:
    datasets = []
    for number, labels in enumerate(declared):
        write_split(tmp_path / str(number), "train", {"t": ["x", "y"], "l": ["a", "b"]})
        folder = str(tmp_path / str(number))
        datasets.append(DatasetRef(str(number), folder, "v", {"text": "t", "label": "l"}, labels))
    data = read_training_data(spec_of(*datasets, validation_split=0.0), Log(ListSink()))
    assert data.labels == expected


def test_whole_numbers_as_labels_are_ordered_as_numbers(tmp_path: Path) -> None:
    write_split(tmp_path, "train", {"t": list("abc"), "l": [10, 9, 1]})
    dataset = DatasetRef("d", str(tmp_path), "v", {"text": "t", "label": "l"})
    assert read_training_data(spec_of(dataset, validation_split=0.0), Log(ListSink())).labels == ["1", "9", "10"]


def test_label_text_keeps_every_byte() -> None:
    for label in ("می‌روم", "ي", "ی", "😀", " فاصله "):
        assert label_text(label) is label
    assert (label_text(3), label_text(3.0), label_text(2.5), label_text(True)) == ("3", "3", "2.5", "True")
