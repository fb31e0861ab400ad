"""The wish that goes down to a running attempt, and the answer it leaves when it ends."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from kargah.spec.journal import utc_now
from kargah.spec.layout import read_json, write_json

EXIT_REFUSED = 75
"""Exit code of a training program that found the run's lock taken (EX_TEMPFAIL of sysexits.h)."""


class Wish(StrEnum):
    """What a person wants of a run; read by the training program at step boundaries."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


def write_wish(path: Path, seq: int, wish: Wish) -> None:
    """Replace the control file. `seq` grows with every wish."""
    write_json(path, {"seq": seq, "wish": wish.value})


def read_wish(path: Path) -> Wish:
    """The present wish; without a control file it is `run`."""
    value = read_json(path)
    return Wish(value["wish"]) if value else Wish.RUN


class Outcome(StrEnum):
    """How an attempt ended by itself."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    PAUSED = "paused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Exit:
    """What `exit.json` says. `retryable` is false for an error that only a person can mend (a bad column)."""

    outcome: Outcome
    step: int
    error: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    detail: str | None = None
    retryable: bool = False
    at: str = field(default_factory=utc_now)


def write_exit(path: Path, exit: Exit, reserve: Path | None = None) -> None:
    """Write `exit.json`, last of all and by rename, into `reserve` where there is one."""
    write_json(
        path,
        {
            "outcome": exit.outcome.value,
            "step": exit.step,
            "error": exit.error,
            "params": exit.params,
            "detail": exit.detail,
            "retryable": exit.retryable,
            "at": exit.at,
        },
        reserve,
    )


def read_exit(path: Path) -> Exit | None:
    """What an attempt left behind, or None while it has not ended by itself."""
    value = read_json(path)
    if value is None:
        return None
    return Exit(
        outcome=Outcome(value["outcome"]),
        step=value["step"],
        error=value["error"],
        params=value["params"],
        detail=value["detail"],
        retryable=value["retryable"],
        at=value["at"],
    )
