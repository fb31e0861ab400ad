"""The heartbeat of training: every batch and every step."""

from kargah.compute.heartbeat import Heartbeat
from kargah.compute.hooks import Hook, StepEnd


class Beats(Hook):
    """Tells the heartbeat that training gets on."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def on_batch(self, loss_sum: float, num_rows: int) -> None:
        self._heartbeat.beat()

    def on_step_end(self, end: StepEnd) -> None:
        self._heartbeat.beat()
