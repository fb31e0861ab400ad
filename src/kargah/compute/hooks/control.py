"""The wish of a person or a signal, obeyed between two steps: checkpoint, then end paused or stopped."""

from kargah.compute.hooks import Hook, StateCapture, StepEnd
from kargah.compute.sink import Log
from kargah.compute.wishes import Wishes
from kargah.spec.control import Outcome, Wish

OUTCOME_OF = {Wish.PAUSE: Outcome.PAUSED, Wish.STOP: Outcome.STOPPED}
_LINE_OF = {Wish.PAUSE: "pauseWished", Wish.STOP: "stopWished"}


class Control(Hook):
    """Reads the wish after every step."""

    def __init__(self, wishes: Wishes, log: Log) -> None:
        self._wishes = wishes
        self._log = log

    def on_start(self, step: int, capture: StateCapture) -> Outcome | None:
        return OUTCOME_OF.get(self._wishes.present())

    def on_step_end(self, end: StepEnd) -> None:
        wish = self._wishes.present()
        if wish is not Wish.RUN and not end.is_last:
            self._log.info(_LINE_OF[wish], step=end.step)
            end.ending = OUTCOME_OF[wish]
            end.wants_checkpoint = True
