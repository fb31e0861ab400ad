"""Takes checkpoints when they are wanted, knows the best, and removes those that need not be kept.

Training stands still only while its state is copied; a thread writes the copy. One checkpoint is written at a time: the
next one waits for it. What goes wrong in the thread is raised at the next step, or at the end.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from kargah.compute.checkpoints import Checkpoint, Lineage, list_checkpoints, prune_checkpoints, write_checkpoint
from kargah.compute.hooks import Hook, StateCapture, StateWriter, StepEnd
from kargah.compute.scores import Evaluation
from kargah.compute.sink import Log, Sink
from kargah.spec.control import Outcome
from kargah.spec.journal import utc_now
from kargah.spec.layout import RunDir, checkpoint_name
from kargah.spec.run_spec import RunSpec


class Checkpoints(Hook):
    """The checkpoints of one run. Training takes place inside `with`; behind it, what was being written is written.

    The best is the one of highest accuracy, and of lowest validation loss among equals. An evaluation better than any
    before is always kept as a checkpoint. The best and the last survive any pruning. `beat` is called whenever the
    writing gets on.
    """

    def __init__(
        self,
        sink: Sink,
        log: Log,
        spec: RunSpec,
        run_dir: RunDir,
        labels: list[str],
        lineage: Lineage,
        beat: Callable[[], None],
    ) -> None:
        self._sink = sink
        self._log = log
        self._spec = spec
        self._run_dir = run_dir
        self._facts = {"labels": labels, **lineage.facts()}
        self._beat = beat
        self._best: Checkpoint | None = None
        self._metrics: dict[str, float] = {}
        self._taken_step: int | None = None
        self._capture: StateCapture | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    @property
    def best(self) -> Checkpoint | None:
        """The best checkpoint, or None when none was evaluated. On disk when training has ended."""
        return self._best

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What was captured is sound, however training ended, and may be all that the run has.
        self._thread.shutdown(wait=True)
        if error is None:
            self._finish()
        elif self._writing is not None and (other := self._writing.exception()) is not None:
            self._log.warning("checkpointLost", detail=f"{type(other).__name__}: {other}")

    def on_start(self, step: int, capture: StateCapture) -> Outcome | None:
        self._capture = capture
        # What is on disk decides, not what was remembered: a checkpoint may have been lost or damaged since.
        known = [checkpoint for checkpoint in list_checkpoints(self._run_dir.checkpoints) if checkpoint.step <= step]
        self._best = max((c for c in known if c.rank is not None), key=lambda c: c.rank or (), default=None)
        self._taken_step = step if any(checkpoint.step == step for checkpoint in known) else None
        return None

    def on_step_end(self, end: StepEnd) -> None:
        self._metrics = {}
        if self._writing is not None and self._writing.done():
            self._finish()

    def on_evaluation(self, end: StepEnd, evaluation: Evaluation) -> None:
        self._metrics = {"accuracy": evaluation.accuracy, "valLoss": evaluation.val_loss, **evaluation.metrics}
        if self._is_best(self._candidate(end)):
            self._log.info("bestSoFar", step=end.step, accuracy=evaluation.accuracy)
            end.wants_checkpoint = True

    def on_settled(self, end: StepEnd) -> None:
        if not end.wants_checkpoint or self._taken_step == end.step or self._capture is None:
            return
        begun = time.perf_counter()
        self._finish()
        write_state = self._capture()
        self._taken_step = end.step
        checkpoint = self._candidate(end)
        is_best = self._is_best(checkpoint)
        if is_best:
            self._best = checkpoint
        best = self._best.name if self._best is not None else None
        facts = {**self._facts, "createdAt": utc_now()}
        stood = time.perf_counter() - begun
        self._writing = self._thread.submit(self._write, checkpoint, is_best, best, facts, write_state, stood)

    def _finish(self) -> None:
        """Wait for what is being written. Raises what went wrong there, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(
        self,
        checkpoint: Checkpoint,
        is_best: bool,
        best: str | None,
        facts: dict[str, Any],
        write_state: StateWriter,
        stood_still_seconds: float,
    ) -> None:
        """In the thread: from a copy to a folder, a record of it, and none too many."""
        begun = time.perf_counter()
        size_bytes = write_checkpoint(self._run_dir, checkpoint, self._spec, facts, write_state, self._beat)
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
        self._log.info(
            "checkpointWritten",
            name=checkpoint.name,
            seconds=time.perf_counter() - begun,
            stoodStillSeconds=stood_still_seconds,
            sizeBytes=size_bytes,
        )
        self._prune(checkpoint.step, best)

    def _candidate(self, end: StepEnd) -> Checkpoint:
        return Checkpoint(checkpoint_name(end.step), end.step, end.epoch, self._metrics)

    def _is_best(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.rank is None:
            return False
        return self._best is None or self._best.rank is None or checkpoint.rank > self._best.rank

    def _prune(self, step: int, best: str | None) -> None:
        try:
            removed = prune_checkpoints(self._run_dir, self._spec.config.keep_checkpoints, best, step)
        except ValueError:
            self._log.warning("keptDamaged")
            return
        for checkpoint in removed:
            self._sink.append("checkpointRemoved", name=checkpoint.name, step=checkpoint.step)
