"""Few points of many: never more than asked, the ends and every spike stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kargah.metrics.sampling import Row, sample

_VALUE = st.none() | st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)
_ROWS = st.lists(st.tuples(_VALUE, _VALUE, _VALUE), max_size=400)


@given(_ROWS, st.integers(min_value=0, max_value=120))
def test_never_more_than_asked_and_the_ends_stay(rows: list[Row], max_points: int) -> None:
    kept = sample(rows, max_points)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(2, max_points)
    if rows:
        assert kept[0] == 0
        assert kept[-1] == len(rows) - 1
    if len(rows) <= max_points:
        assert kept == list(range(len(rows)))


@given(_ROWS, st.integers(min_value=8, max_value=120))
def test_lowest_and_highest_of_every_series_stay(rows: list[Row], max_points: int) -> None:
    kept = sample(rows, max_points)
    for series in range(3):
        values = [row[series] for row in rows if row[series] is not None]
        if values:
            shown = [rows[index][series] for index in kept if rows[index][series] is not None]
            assert min(shown) == min(values)  # type: ignore[type-var]
            assert max(shown) == max(values)  # type: ignore[type-var]


@pytest.mark.parametrize("spike_at", [1, 4_999, 7_777, 99_998])
def test_a_spike_of_one_step_is_seen_at_any_zoom(spike_at: int) -> None:
    rows: list[Row] = [(1.0 / (1 + step), None, None) for step in range(100_000)]
    rows[spike_at] = (50.0, None, None)
    for max_points in (10, 100, 2000):
        assert spike_at in sample(rows, max_points)


def test_few_evaluations_are_all_kept() -> None:
    evaluated = set(range(500, 10_000, 500))
    rows: list[Row] = [
        (1.0, 0.5 if step in evaluated else None, 0.9 if step in evaluated else None) for step in range(10_000)
    ]
    assert evaluated <= set(sample(rows, 400))
