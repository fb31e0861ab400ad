"""Choosing few points of many so that a curve keeps its shape: minima and maxima of every bucket stay.

The method is min-max decimation as oscilloscopes do it: each bucket of consecutive points gives its lowest and highest,
so a spike of a single step is visible at any zoom.
"""

from collections.abc import Sequence

Row = tuple[float | None, ...]


def sample(rows: Sequence[Row], max_points: int) -> list[int]:
    """Indices, growing, of at most `max_points` of `rows` (one value a series in each row).

    First and last are kept. Rows of a sparse series (evaluations) are all kept where they are few; otherwise the
    extremes of each series within each bucket, from 2 points and 2 a series on. `max_points` below 2 is taken for 2.
    """
    max_points = max(2, max_points)
    if len(rows) <= max_points:
        return list(range(len(rows)))
    kept = {0, len(rows) - 1}
    num_series = len(rows[0])
    present = [[i for i, row in enumerate(rows) if row[s] is not None] for s in range(num_series)]
    sparse = [s for s in range(num_series) if 0 < len(present[s]) <= max_points // (4 * num_series)]
    for s in sparse:
        kept.update(present[s])
    dense = [s for s in range(num_series) if present[s] and s not in sparse]
    if dense:
        budget = max_points - len(kept)
        num_buckets = max(1, budget // (2 * len(dense)))
        for s in dense:
            kept.update(_extremes(rows, present[s], s, num_buckets))
    if len(kept) > max_points:  # too few points to show every series' extremes
        return [0, *sorted(kept - {0, len(rows) - 1})[: max_points - 2], len(rows) - 1]
    return sorted(kept)


def _extremes(rows: Sequence[Row], indices: list[int], series: int, num_buckets: int) -> set[int]:
    def value(index: int) -> float:
        return rows[index][series] or 0.0

    kept: set[int] = set()
    for bucket in range(num_buckets):
        part = indices[len(indices) * bucket // num_buckets : len(indices) * (bucket + 1) // num_buckets]
        if part:
            kept.add(min(part, key=value))
            kept.add(max(part, key=value))
    return kept
