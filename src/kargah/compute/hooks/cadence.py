"""When to evaluate, when to write a checkpoint, when the planned steps are done."""

from kargah.compute.hooks import Hook, StateCapture, StepEnd
from kargah.spec.control import Outcome
from kargah.spec.run_spec import TrainConfig


class Cadence(Hook):
    """Every so many steps, or once an epoch where the config gives no number; both at the last step."""

    def __init__(self, config: TrainConfig, total_steps: int, *, can_evaluate: bool) -> None:
        self._config = config
        self._total_steps = total_steps
        self._can_evaluate = can_evaluate

    def on_start(self, step: int, capture: StateCapture) -> Outcome | None:
        return Outcome.COMPLETED if step >= self._total_steps else None

    def on_step_end(self, end: StepEnd) -> None:
        if self._can_evaluate and (end.is_last or _due(end, self._config.eval_every_steps)):
            end.wants_evaluation = True
        if end.is_last or _due(end, self._config.checkpoint_every_steps):
            end.wants_checkpoint = True
        if end.is_last:
            end.ending = Outcome.COMPLETED


def _due(end: StepEnd, every_steps: int | None) -> bool:
    return end.is_epoch_end if every_steps is None else end.step % every_steps == 0
