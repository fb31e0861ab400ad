"""Reading, uniting and splitting rows."""

import dataclasses
import json
from pathlib import Path

import pytest

from kargah.compute.data import Rows, label_text, read_training_data, split_by_content
from kargah.compute.failures import Code, TrainingFailed
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


def test_numbers_that_are_equal_have_an_order_of_their_own(tmp_path: Path) -> None:
    write_split(tmp_path, "train", {"t": list("abcd"), "l": ["01", "1", "--5", "1"]})
    dataset = DatasetRef("d", str(tmp_path), "v", {"text": "t", "label": "l"})
    assert read_training_data(spec_of(dataset, validation_split=0.0), Log(ListSink())).labels == ["--5", "01", "1"]
    write_split(tmp_path, "train", {"t": list("abcd"), "l": ["1", "01", "2", "001"]})
    assert read_training_data(spec_of(dataset, validation_split=0.0), Log(ListSink())).labels == ["001", "01", "1", "2"]


def made_and_given(folder: Path) -> DatasetRef:
    """70 and 30 rows of 100 different texts, two labels in equal parts."""
    rows = [(f"متن {number}", "آ" if number % 2 else "ب") for number in range(100)]
    for split, part in (("train", rows[:70]), ("validation", rows[70:])):
        write_split(folder, split, {"t": [text for text, _ in part], "l": [label for _, label in part]})
    return DatasetRef("d", str(folder), "v", {"text": "t", "label": "l"})


def test_validation_rows_an_import_made_are_divided_anew_by_the_share_asked_for(tmp_path: Path) -> None:
    dataset = dataclasses.replace(made_and_given(tmp_path), validation_made=True)
    for share, num_rows in ((0.3, 30), (0.5, 50), (0.1, 10), (0.0, 0), (None, 30)):
        sink = ListSink()
        data = read_training_data(spec_of(dataset, validation_split=share), Log(sink))
        assert (len(data.validation), len(data.train)) == (num_rows, 100 - num_rows)
        assert not set(data.train.texts) & set(data.validation.texts)
        assert "respected" not in sink.messages()
        if share:
            assert sorted(data.validation.labels) == ["آ"] * (num_rows // 2) + ["ب"] * (num_rows // 2)
    together = read_training_data(spec_of(dataset, validation_split=0.3), Log(ListSink()))
    numbers = [int(text.split()[1]) for text in together.train.texts]
    assert numbers == sorted(numbers)  # the order of the files
    assert any(number >= 70 for number in numbers)


def test_validation_rows_that_were_given_are_respected_and_it_is_said(tmp_path: Path) -> None:
    sink = ListSink()
    data = read_training_data(spec_of(made_and_given(tmp_path), validation_split=0.5), Log(sink))
    assert (len(data.train), len(data.validation)) == (70, 30)
    (record,) = [record for record in sink.of("log") if "respected" in record["message"]]
    assert (record["level"], record["details"]) == ("info", {"dataset": "d", "numRows": 30})


def test_a_tenth_is_divided_off_where_nothing_is_asked_and_nothing_given(tmp_path: Path) -> None:
    dataset = made_and_given(tmp_path)
    (tmp_path / "validation.parquet").unlink()
    for share, num_rows in ((None, 8), (0.3, 22)):  # of 35 rows each: 3.5 and 10.5, rounded to even
        data = read_training_data(spec_of(dataset, validation_split=share), Log(ListSink()))
        assert len(data.validation) == pytest.approx(num_rows, abs=2)
        assert len(data.train) + len(data.validation) == 70


@pytest.mark.parametrize(
    ("num_rows", "num_labels", "limit"),
    [(2000, 1000, None), (2002, 1001, 1000), (100, 100, None), (101, 101, 100), (300, 150, None), (300, 151, 150),
     (100_000, 100_000, 1000)],
)  # fmt: skip
def test_a_column_that_is_no_label_is_refused_for_its_many_labels(
    tmp_path: Path, num_rows: int, num_labels: int, limit: int | None
) -> None:
    texts = [f"t{number}" for number in range(num_rows)]
    write_split(tmp_path, "train", {"t": texts, "l": [f"l{number % num_labels}" for number in range(num_rows)]})
    spec = spec_of(DatasetRef("d", str(tmp_path), "v", {"text": "t", "label": "l"}), validation_split=0.0)
    sink = ListSink()
    if limit is None:
        assert len(read_training_data(spec, Log(sink)).labels) == num_labels
        return
    with pytest.raises(TrainingFailed) as caught:
        read_training_data(spec, Log(sink))
    assert caught.value.code is Code.TOO_MANY_LABELS
    assert caught.value.params == {"count": num_labels, "limit": limit}
    assert not caught.value.retryable
    assert len(json.dumps(sink.records)) < 500  # nothing that grows with the labels was written
