"""Writes checkpoints when they are wanted, knows the best, and removes those that need not be kept."""

import time
from pathlib import Path

from kargah.compute.checkpoints import Checkpoint, list_checkpoints, remove_checkpoint, write_checkpoint
from kargah.compute.hooks import Hook, StateWriter, StepEnd
from kargah.compute.scores import Evaluation
from kargah.compute.sink import Log, Sink
from kargah.spec.control import Outcome
from kargah.spec.layout import checkpoint_name
from kargah.spec.run_spec import RunSpec


class Checkpoints(Hook):
    """The checkpoints of one run.

    The best is the one of highest accuracy, and of lowest validation loss among equals. An evaluation better than any
    before is always kept as a checkpoint. The best and the last survive any pruning.
    """

    def __init__(self, sink: Sink, log: Log, spec: RunSpec, folder: Path, labels: list[str]) -> None:
        self._sink = sink
        self._log = log
        self._spec = spec
        self._folder = folder
        self._labels = labels
        self._best: Checkpoint | None = None
        self._metrics: dict[str, float] = {}
        self._written_step: int | None = None
        self._write_state: StateWriter | None = None

    @property
    def best(self) -> Checkpoint | None:
        """The best checkpoint on disk, or None when none was evaluated."""
        return self._best

    def on_start(self, step: int, write_state: StateWriter) -> Outcome | None:
        self._write_state = write_state
        # What is on disk decides, not what was remembered: a checkpoint may have been lost or damaged since.
        known = [checkpoint for checkpoint in list_checkpoints(self._folder) if checkpoint.step <= step]
        self._best = max((c for c in known if c.rank is not None), key=lambda c: c.rank or (), default=None)
        self._written_step = step if any(checkpoint.step == step for checkpoint in known) else None
        return None

    def on_step_end(self, end: StepEnd) -> None:
        self._metrics = {}

    def on_evaluation(self, end: StepEnd, evaluation: Evaluation) -> None:
        self._metrics = {"accuracy": evaluation.accuracy, "valLoss": evaluation.val_loss, **evaluation.metrics}
        if self._is_best(self._candidate(end)):
            self._log.info("bestSoFar", step=end.step, accuracy=evaluation.accuracy)
            end.wants_checkpoint = True

    def on_settled(self, end: StepEnd) -> None:
        if not end.wants_checkpoint or self._written_step == end.step or self._write_state is None:
            return
        begun = time.perf_counter()
        checkpoint = self._candidate(end)
        size_bytes = write_checkpoint(self._folder, checkpoint, self._spec, self._labels, self._write_state)
        self._written_step = end.step
        is_best = self._is_best(checkpoint)
        if is_best:
            self._best = checkpoint
        self._sink.append(
            "checkpoint",
            durable=True,
            step=checkpoint.step,
            epoch=checkpoint.epoch,
            name=checkpoint.name,
            sizeBytes=size_bytes,
            metrics=checkpoint.metrics,
            best=is_best,
        )
        seconds = time.perf_counter() - begun
        self._log.info("checkpointWritten", name=checkpoint.name, seconds=seconds, sizeBytes=size_bytes)
        self._prune(end.step)

    def _candidate(self, end: StepEnd) -> Checkpoint:
        return Checkpoint(checkpoint_name(end.step), end.step, end.epoch, self._metrics)

    def _is_best(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.rank is None:
            return False
        return self._best is None or self._best.rank is None or checkpoint.rank > self._best.rank

    def _prune(self, step: int) -> None:
        known = [checkpoint for checkpoint in list_checkpoints(self._folder) if checkpoint.step <= step]
        num_kept = max(1, self._spec.config.keep_checkpoints)
        for checkpoint in known[:-num_kept]:
            if self._best is None or checkpoint.name != self._best.name:
                remove_checkpoint(self._folder, checkpoint.name)
                self._sink.append("checkpointRemoved", name=checkpoint.name, step=checkpoint.step)
