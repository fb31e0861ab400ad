"""Which rows make a batch: a pure function of (seed, epoch), so that a resumed run sees the batches it would have seen.

`random` takes rows as the shuffle has them. `bucketed` sorts windows of fifty batches by length first, so rows of like
length share a batch and little of it is padding; the batches then come in random order. Both give the same number of
batches every epoch.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

WINDOW_BATCHES = 50


class EpochBatches(Sampler[list[int]]):
    """Batches of row numbers, anew each epoch; the smaller last one, if any, stands anywhere when bucketed.

    `lengths` are the rows' lengths in tokens, shape [rows].
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, seed: int, *, bucketed: bool) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._bucketed = bucketed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch to come, from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self._seed % 2**32, self._epoch])
        order = random.permutation(len(self._lengths))
        if not self._bucketed:
            yield from self._cut(order)
            return
        window = WINDOW_BATCHES * self._batch_size
        batches: list[list[int]] = []
        for begin in range(0, len(order), window):
            part = order[begin : begin + window]
            batches.extend(self._cut(part[np.argsort(self._lengths[part], kind="stable")]))
        for number in random.permutation(len(batches)):
            yield batches[number]

    def _cut(self, order: NDArray[np.int64]) -> list[list[int]]:
        return [order[begin : begin + self._batch_size].tolist() for begin in range(0, len(order), self._batch_size)]
