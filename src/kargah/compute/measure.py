"""How fast a classifier answers one request. The same measure for a model and for a baseline."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

WARM_UP_REQUESTS = 3
MEASURED_REQUESTS = 50


def median_latency_ms(answer: Callable[[int], object], num_rows: int) -> float:
    """Median milliseconds of `answer(row number)`, one request after the other, over at most 50 rows."""
    num_requests = min(num_rows, MEASURED_REQUESTS)
    numbers = [request * num_rows // num_requests for request in range(num_requests)]
    for number in numbers[:WARM_UP_REQUESTS]:
        answer(number)
    seconds = []
    for number in numbers:
        begun = time.perf_counter()
        answer(number)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1000


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
