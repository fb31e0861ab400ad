"""Tells of every evaluation."""

from kargah.compute.hooks import Hook, StepEnd
from kargah.compute.scores import Evaluation
from kargah.compute.sink import Log, Sink


class Evaluations(Hook):
    """Writes an `evaluation` record and a line for people."""

    def __init__(self, sink: Sink, log: Log) -> None:
        self._sink = sink
        self._log = log

    def on_evaluation(self, end: StepEnd, evaluation: Evaluation) -> None:
        self._sink.append(
            "evaluation",
            step=end.step,
            epoch=end.epoch,
            valLoss=evaluation.val_loss,
            accuracy=evaluation.accuracy,
            metrics=evaluation.metrics,
        )
        self._log.info("evaluated", step=end.step, accuracy=evaluation.accuracy, valLoss=evaluation.val_loss)
