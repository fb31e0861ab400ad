"""What can end an attempt badly, each with a stable code, and how any error becomes the attempt's `Exit`.

    TrainingFailed      a named failure: code, parameters for the message, whether another attempt may help
    Interrupted         the wish changed before the first step: not a failure

`exit_of` maps everything else: a full disk and too little memory are retryable, what is unknown is `INTERNAL`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from kargah.spec.control import Exit, Outcome
from kargah.spec.run_spec import SpecError

DETAIL_MAX_CHARS = 300

# Measured on a full file system: safetensors keeps the system's words, torch only says that its file came out short.
_DISK_FULL_TEXTS = ("No space left on device", "PytorchStreamWriter failed writing", ". unexpected pos ")


class Code(StrEnum):
    """Stable error codes of an attempt, as `exit.json` and the `finished` record carry them."""

    SPEC_INVALID = "SPEC_INVALID"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    MODEL_DAMAGED = "MODEL_DAMAGED"
    TOKENIZER_DAMAGED = "TOKENIZER_DAMAGED"
    DATA_DAMAGED = "DATA_DAMAGED"
    EMPTY_DATA = "EMPTY_DATA"
    COLUMN_NOT_FOUND = "COLUMN_NOT_FOUND"
    UNKNOWN_LABEL = "UNKNOWN_LABEL"
    SINGLE_CLASS = "SINGLE_CLASS"
    TOO_MANY_LABELS = "TOO_MANY_LABELS"
    TEACHER_MISMATCH = "TEACHER_MISMATCH"
    NON_FINITE_LOSS = "NON_FINITE_LOSS"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DISK_FULL = "DISK_FULL"
    INTERNAL = "INTERNAL"


class TrainingFailed(Exception):
    """A failure that has a name. `params` fill the message shown to a person."""

    def __init__(self, code: Code, detail: str, *, retryable: bool = False, **params: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retryable = retryable
        self.params = params


class Interrupted(Exception):
    """A wish to pause or stop arrived before the first step."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.value)
        self.outcome = outcome


@contextmanager
def damage_is(code: Code, what: str, **params: Any) -> Iterator[None]:
    """Whatever goes wrong while reading `what` means that it is damaged, except a lack of memory or disk."""
    try:
        yield
    except (TrainingFailed, Interrupted):
        raise
    except Exception as error:  # tokenizers and safetensors raise bare Exception for a damaged file
        if shortage_of(error) is not None:
            raise
        raise TrainingFailed(code, f"{what}: {_short(error)}", **params) from error


def exit_of(error: BaseException, step: int) -> Exit:
    """The `Exit` of an attempt that ended with `error` after `step` optimiser steps."""
    if isinstance(error, Interrupted):
        return Exit(error.outcome, step)
    if isinstance(error, TrainingFailed):
        return _failed(step, error.code, error.params, error.detail, error.retryable)
    if isinstance(error, SpecError):
        return _failed(step, Code.SPEC_INVALID, {"field": error.field}, str(error), False)
    shortage = shortage_of(error)
    if shortage is not None:
        return _failed(step, shortage, {}, _short(error), True)
    return _failed(step, Code.INTERNAL, {}, f"{type(error).__name__}: {_short(error)}", True)


def shortage_of(error: BaseException) -> Code | None:
    """`DISK_FULL` or `OUT_OF_MEMORY` when that is what `error`, or what caused it, says.

    torch and safetensors hide the number of the system's error, so their texts are read too.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return Code.DISK_FULL
        if any(sign in text for sign in _DISK_FULL_TEXTS):
            return Code.DISK_FULL
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            return Code.OUT_OF_MEMORY
        if "can't allocate memory" in text or "not enough memory" in text:
            return Code.OUT_OF_MEMORY
        seen = seen.__cause__ or seen.__context__
    return None


def _failed(step: int, code: Code, params: dict[str, Any], detail: str, retryable: bool) -> Exit:
    return Exit(Outcome.FAILED, step, code.value, params, detail[:DETAIL_MAX_CHARS], retryable)


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:DETAIL_MAX_CHARS]
