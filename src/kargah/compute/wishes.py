"""What is wished of this attempt right now: the control file, and signals as a wish to pause. Standard library only."""

import contextlib
import signal
from pathlib import Path
from types import FrameType

from kargah.spec.control import Wish, read_wish


class Wishes:
    """Reads the present wish. A signal never outweighs a stop, and a pause by signal is not taken back."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._signalled = False
        self._wish = Wish.RUN

    def obey_signals(self) -> None:
        """From now on SIGTERM and SIGINT mean: pause."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def present(self) -> Wish:
        """The wish now. A control file that cannot be understood changes nothing: the last wish stands."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            self._wish = read_wish(self._control)
        return Wish.PAUSE if self._wish is Wish.RUN and self._signalled else self._wish

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True
