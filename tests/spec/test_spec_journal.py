"""The journal: whole lines only, any offset, no numbers that JSON lacks, one growing sequence."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kargah.spec.journal import JournalWriter, finite, read_journal


def _written(path: Path, *facts: dict[str, Any]) -> None:
    journal = JournalWriter(path)
    for fact in facts:
        journal.append("log", **fact)
    journal.close()


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "attempts" / "1" / "journal.jsonl"
    _written(path, {"message": "می‌رود 🌱\nخط دوم"}, {"message": "b", "details": {"یک": 1}})
    part = read_journal(path)
    assert [record["seq"] for record in part.records] == [1, 2]
    assert part.records[0]["message"] == "می‌رود 🌱\nخط دوم"
    assert part.records[0]["at"].endswith("Z")
    assert part.offset == path.stat().st_size
    assert "می‌رود" in path.read_text(encoding="utf-8")


def test_an_incomplete_last_line_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path, {"message": "a"}, {"message": "ب" * 100})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        part = read_journal(path)
        assert len(part.records) == 1
        assert part.offset == first
    path.write_bytes(whole)
    assert [record["seq"] for record in read_journal(path, first).records] == [2]


def test_reading_in_parts_gives_every_record_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path, *({"message": "م" * number} for number in range(40)))
    seen, offset = [], 0
    while (part := read_journal(path, offset, limit_bytes=64)).records:
        seen += [record["seq"] for record in part.records]
        offset = part.offset
    assert seen == list(range(1, 41))


def test_an_offset_beyond_the_end_reads_as_nothing_new(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_journal(path, 77).offset == 77
    _written(path, {"message": "a"})
    part = read_journal(path, 10_000)
    assert part.records == []
    assert part.offset == 10_000


def test_a_complete_line_that_is_no_json_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"seq":1}\n{broken\n')
    with pytest.raises(ValueError, match="Expecting"):
        read_journal(path)


def test_blocks_of_zeros_of_a_power_cut_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"seq":1}\n' + b"\0" * 512 + b"\n" + b'{"seq":2}\n')
    assert [record["seq"] for record in read_journal(path).records] == [1, 2]


def test_values_that_are_not_finite_are_null_and_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = JournalWriter(path)
    journal.append("metric", loss=math.nan, gradNorm=math.inf, metrics={"f1": -math.inf, "mcc": 0.5}, step=3)
    journal.close()
    line = path.read_text(encoding="utf-8")
    assert "NaN," not in line
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} stands in the journal"))
    assert record["loss"] is None
    assert record["metrics"] == {"f1": None, "mcc": 0.5}
    assert record["nonFinite"] == {"loss": "NaN", "gradNorm": "Infinity", "metrics.f1": "-Infinity"}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name != "nonFinite"),
        st.floats() | st.integers() | st.dictionaries(st.text(min_size=1, max_size=3), st.floats(), max_size=3),
        max_size=5,
    )
)
def test_finite_always_makes_json(fields: dict[str, Any]) -> None:
    assert json.loads(json.dumps(finite(fields), allow_nan=False)) is not None


def test_threads_that_append_together_share_one_sequence(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = JournalWriter(path)
    start = threading.Barrier(4)

    def write(name: int) -> None:
        start.wait()
        for number in range(100):
            journal.append("log", message=f"{name}.{number}", durable=number == 50)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    records = read_journal(path).records
    assert [record["seq"] for record in records] == list(range(1, 401))
    for name in range(4):
        own = [record["message"] for record in records if record["message"].startswith(f"{name}.")]
        assert own == [f"{name}.{number}" for number in range(100)]
