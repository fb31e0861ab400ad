"""The logging window: mean loss, speed and rates since the last metric record, and the watch for a loss gone wild.

Trainer forgets its own sums when a run resumes; these are kept in the checkpoint, so a resumed run logs the same means.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kargah.compute.failures import Code, TrainingFailed
from kargah.compute.hooks import Hook, StateCapture, StepEnd
from kargah.compute.sink import Sink
from kargah.spec.control import Outcome


class Stopwatch:
    """Seconds of training, without what is done `paused`."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = time.perf_counter()

    def restart(self, seconds: float = 0.0) -> None:
        """Count on from `seconds`."""
        self._seconds = seconds
        self._since = time.perf_counter()

    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        self._seconds, self._since = self.seconds(), None
        try:
            yield
        finally:
            self._since = time.perf_counter()


class LogWindow(Hook):
    """Writes a `metric` record every so many steps and at the last one; ends the run when a loss is not finite."""

    name = "window"

    def __init__(self, sink: Sink, stopwatch: Stopwatch, log_every_steps: int) -> None:
        self._sink = sink
        self._stopwatch = stopwatch
        self._every = log_every_steps
        self._loss_sum = 0.0
        self._num_rows = 0
        self._is_finite = True
        self._logged_step = 0
        self._seconds_before = 0.0

    def on_start(self, step: int, capture: StateCapture) -> Outcome | None:
        self._stopwatch.restart(self._seconds_before)
        return None

    def on_batch(self, loss_sum: float, num_rows: int) -> None:
        self._loss_sum += loss_sum
        self._num_rows += num_rows
        self._is_finite = self._is_finite and math.isfinite(loss_sum)

    def on_step_end(self, end: StepEnd) -> None:
        if not self._is_finite:
            self._write(end)
            raise TrainingFailed(Code.NON_FINITE_LOSS, f"the loss is not finite at step {end.step}", step=end.step)
        if end.step % self._every == 0:
            self._write(end)
            self._loss_sum = 0.0
            self._num_rows = 0
            self._stopwatch.restart()
        elif end.is_last:
            self._write(end)

    def on_settled(self, end: StepEnd) -> None:
        # A run that ends between two records leaves one behind. The sums stay: who restores it logs the whole window.
        if end.ending not in (None, Outcome.PAUSED) and self._logged_step != end.step:
            self._write(end)

    def state(self) -> dict[str, Any]:
        return {"lossSum": self._loss_sum, "numRows": self._num_rows, "seconds": self._stopwatch.seconds()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._loss_sum = state["lossSum"]
        self._num_rows = state["numRows"]
        self._seconds_before = state["seconds"]

    def _write(self, end: StepEnd) -> None:
        self._logged_step = end.step
        self._sink.append(
            "metric",
            step=end.step,
            epoch=end.epoch,
            loss=self._loss_sum / self._num_rows,
            learningRate=end.learning_rate,
            throughput=self._num_rows / max(self._stopwatch.seconds(), 1e-9),
            gradNorm=end.grad_norm,
        )
