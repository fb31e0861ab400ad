"""Ends a run whose evaluations no longer get better."""

import math
from typing import Any

from kargah.compute.hooks import Hook, StateCapture, StepEnd
from kargah.compute.scores import Evaluation
from kargah.compute.sink import Log
from kargah.spec.control import Outcome


class EarlyStopping(Hook):
    """Ends the run after `patience` evaluations in a row without an improvement of more than `threshold`.

    An evaluation improves when its accuracy is higher by more than `threshold`, or when its accuracy is no lower and
    its validation loss is lower by more than `threshold`.
    """

    name = "earlyStopping"

    def __init__(self, log: Log, patience: int, threshold: float) -> None:
        self._log = log
        self._patience = patience
        self._threshold = threshold
        self._accuracy = -math.inf
        self._val_loss = math.inf
        self._num_worse = 0

    @property
    def has_stopped(self) -> bool:
        """Whether the patience is used up."""
        return self._num_worse >= self._patience

    def on_start(self, step: int, capture: StateCapture) -> Outcome | None:
        return Outcome.COMPLETED if self.has_stopped else None

    def on_evaluation(self, end: StepEnd, evaluation: Evaluation) -> None:
        if self._improves(evaluation):
            self._accuracy = evaluation.accuracy
            self._val_loss = evaluation.val_loss
            self._num_worse = 0
            return
        self._num_worse += 1
        if self.has_stopped and end.ending is None:
            self._log.info("stoppedEarly", step=end.step, numEvaluations=self._num_worse)
            end.ending = Outcome.COMPLETED
            end.wants_checkpoint = True

    def state(self) -> dict[str, Any]:
        finite = math.isfinite(self._accuracy)
        return {
            "accuracy": self._accuracy if finite else None,
            "valLoss": self._val_loss if finite and math.isfinite(self._val_loss) else None,
            "numWorse": self._num_worse,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._accuracy = -math.inf if state["accuracy"] is None else state["accuracy"]
        self._val_loss = math.inf if state["valLoss"] is None else state["valLoss"]
        self._num_worse = state["numWorse"]

    def _improves(self, evaluation: Evaluation) -> bool:
        if evaluation.accuracy > self._accuracy + self._threshold:
            return True
        return evaluation.accuracy >= self._accuracy and evaluation.val_loss < self._val_loss - self._threshold
