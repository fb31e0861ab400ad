"""The built-in Persian data set is sound, and the check that says so sees what is wrong with an unsound one."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_support_set.py"
NUM_INTENTS = 16


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_support_set", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


check = _load_script()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for split in check.SPLITS:
        shutil.copyfile(check.FOLDER / f"{split}.csv", tmp_path / f"{split}.csv")
    return tmp_path


def test_set_is_sound() -> None:
    assert check.find_problems(check.FOLDER) == []


def test_set_is_balanced_and_large_enough() -> None:
    least = {"train": 140, "validation": 18, "test": 30}
    for split, num_rows in least.items():
        labels = [row.label for row in check.read_split(check.FOLDER / f"{split}.csv")]
        counts = {label: labels.count(label) for label in set(labels)}
        assert len(counts) == NUM_INTENTS
        assert min(counts.values()) >= num_rows


def test_set_has_the_spellings_it_was_written_with() -> None:
    for split in check.SPLITS:
        texts = [row.text for row in check.read_split(check.FOLDER / f"{split}.csv")]
        assert 0.2 < sum(check.ZWNJ in text for text in texts) / len(texts) < 0.6
        assert 0.01 < sum(any(c in text for c in check.ARABIC_LETTERS) for text in texts) / len(texts) < 0.1


def test_near_duplicate_across_splits_is_seen(copy: Path) -> None:
    first = check.read_split(copy / "test.csv")[0]
    arabic = first.text.replace("ی", check.ARABIC_LETTERS[0]).replace(check.ZWNJ, " ")
    _append(copy / "train.csv", [f"{arabic}!", first.label])
    problems = check.find_problems(copy)
    assert len(problems) == 1
    assert "near duplicate 1.00" in problems[0]


def test_row_with_another_label_is_seen(copy: Path) -> None:
    _append(copy / "train.csv", ["آیا شعبه‌ی حضوری در شهر مشهد هم باز کرده‌اید", "شعبه"])
    problems = check.find_problems(copy)
    assert [problem.split(":")[0] for problem in problems] == ["validation", "test"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda data: b"\xef\xbb\xbf" + data, "byte order mark"),
        (lambda data: data.replace(b"\n", b"\r\n"), "carriage return"),
        (lambda data: data + "زرافه‌ی\u202b مخملی قدبلند,لغو سفارش\n".encode(), "U+202B"),
        (lambda data: data + '"زرافه‌ی مخملی قدبلند",لغو سفارش\n'.encode(), "minimal quoting"),
    ],
)
def test_damaged_bytes_are_seen(copy: Path, damage: Callable[[bytes], bytes], named: str) -> None:
    path = copy / "validation.csv"
    path.write_bytes(damage(path.read_bytes()))
    assert any(named in problem for problem in check.find_problems(copy))


def _append(path: Path, fields: list[str]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(",".join(fields) + "\n")
