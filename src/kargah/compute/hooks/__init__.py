"""What happens around a training step, one concern a file. The trainer calls every hook at the same few moments.

    on_start      once, before the first step, after the states of a resumed run are given back; may end it there
    on_batch      after each forward pass of a batch
    on_step_end   after each optimiser step: hooks ask for an evaluation, a checkpoint, an end
    on_evaluation after an evaluation that was asked for
    on_settled    last, when it is known whether a checkpoint is wanted and whether training ends here

A hook with a `name` keeps its `state` in every checkpoint, under that name, as JSON.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kargah.compute.scores import Evaluation
from kargah.spec.control import Outcome

StateWriter = Callable[[Path], None]
"""Writes weights, optimizer, schedule, random states and the hooks' states into a folder, from any thread."""

StateCapture = Callable[[], StateWriter]
"""Copies that state as it is now. What it gives writes the copy, and is good until the next capture."""


@dataclass(slots=True)
class StepEnd:
    """An optimiser step just taken, and what the hooks want to follow. `epoch` has its fraction."""

    step: int
    epoch: float
    total_steps: int
    steps_per_epoch: int
    learning_rate: float
    grad_norm: float
    wants_evaluation: bool = False
    wants_checkpoint: bool = False
    ending: Outcome | None = None

    @property
    def is_last(self) -> bool:
        """Whether the planned steps are done."""
        return self.step >= self.total_steps

    @property
    def is_epoch_end(self) -> bool:
        """Whether every training row was seen once more."""
        return self.step % self.steps_per_epoch == 0


class Hook:
    """Does nothing at any moment; concerns override what they need."""

    name = ""

    def on_start(self, step: int, capture: StateCapture) -> Outcome | None:
        """Training is about to go on from `step`. An outcome means that there is nothing to do."""
        return None

    def on_batch(self, loss_sum: float, num_rows: int) -> None:
        """A batch of `num_rows` rows had losses that add up to `loss_sum`."""

    def on_step_end(self, end: StepEnd) -> None:
        """An optimiser step was taken."""

    def on_evaluation(self, end: StepEnd, evaluation: Evaluation) -> None:
        """The validation rows were scored with the weights of this step."""

    def on_settled(self, end: StepEnd) -> None:
        """Everybody has said what they want of this step."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if nothing had happened."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
