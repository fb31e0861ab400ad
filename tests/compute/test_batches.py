"""Which rows make a batch."""

import numpy as np
import pytest

from kargah.compute.batches import EpochBatches

LENGTHS = np.random.default_rng(1).integers(3, 60, size=1003)


def batches(epoch: int, *, seed: int = 5, bucketed: bool = True) -> list[list[int]]:
    sampler = EpochBatches(LENGTHS, 16, seed, bucketed=bucketed)
    sampler.set_epoch(epoch)
    made = list(sampler)
    assert len(made) == len(sampler)
    return made


@pytest.mark.parametrize("bucketed", [True, False])
def test_every_row_once_and_the_same_for_seed_and_epoch(bucketed: bool) -> None:
    first = batches(0, bucketed=bucketed)
    assert sorted(row for batch in first for row in batch) == list(range(len(LENGTHS)))
    assert first == batches(0, bucketed=bucketed)
    assert first != batches(1, bucketed=bucketed)
    assert first != batches(0, seed=6, bucketed=bucketed)


def test_bucketing_leaves_little_padding() -> None:
    def share(made: list[list[int]]) -> float:
        return sum(int(LENGTHS[b].sum()) for b in made) / sum(len(b) * int(LENGTHS[b].max()) for b in made)

    assert share(batches(0)) > 0.95 > 0.7 > share(batches(0, bucketed=False))


def test_bucketed_batches_come_in_no_order_of_length() -> None:
    means = [float(LENGTHS[batch].mean()) for batch in batches(0)]
    assert sorted(means) != means
    assert max(means[: len(means) // 4]) > 45
    assert min(means[: len(means) // 4]) < 15
