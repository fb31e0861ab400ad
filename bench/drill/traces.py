"""What a run's directory tells while the run goes on, with no server asked: how far it is, and which process it is."""

import os
import signal
from dataclasses import dataclass, field

import psutil

from kargah.spec.journal import Record, read_journal
from kargah.spec.layout import RunDir
from kargah.spec.lock import holder_pid


@dataclass(slots=True)
class AttemptTrace:
    """One attempt as its journal tells it. `start_step` is None until it has begun to train."""

    number: int
    offset: int = 0
    start_step: int | None = None
    steps: list[int] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)

    @property
    def trained(self) -> int:
        """Steps it has logged."""
        return len(self.steps)

    @property
    def advanced(self) -> bool:
        """Whether it has written a checkpoint beyond where it began."""
        return self.start_step is not None and any(step > self.start_step for step in self.checkpoints)


class RunTrace:
    """The attempts of one run; `refresh` reads what is new."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.attempts: list[AttemptTrace] = []

    def refresh(self) -> "RunTrace":
        """Read what the journals tell by now. Raises `ValueError` for a damaged one."""
        known = {attempt.number for attempt in self.attempts}
        self.attempts += [AttemptTrace(number) for number in self.run_dir.attempt_numbers() if number not in known]
        for attempt in self.attempts:
            self._read(attempt)
        return self

    @property
    def newest(self) -> AttemptTrace | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def num_without_checkpoint(self) -> int:
        """How many attempts in a row, the newest among them, have not got to a checkpoint."""
        count = 0
        for attempt in reversed(self.attempts):
            if attempt.advanced:
                break
            count += 1
        return count

    def _read(self, attempt: AttemptTrace) -> None:
        while True:
            part = read_journal(self.run_dir.attempt(attempt.number).journal, attempt.offset)
            if not part.records:
                return
            attempt.offset = part.offset
            for record in part.records:
                _note(attempt, record)


def program_pid(run_dir: RunDir) -> int | None:
    """The training program of a run: who holds its lock, or who was just started and is about to take it."""
    holder = holder_pid(run_dir.lock)
    if holder is not None:
        return holder
    for process in psutil.process_iter(["cmdline", "status"]):
        is_dead = process.info["status"] == psutil.STATUS_ZOMBIE
        if not is_dead and str(run_dir.root) in (process.info["cmdline"] or []):
            return int(process.pid)
    return None


def kill_program(run_dir: RunDir) -> int | None:
    """End the training program and all it started, as the kernel does when memory runs out. Returns its process."""
    pid = program_pid(run_dir)
    if pid is None:
        return None
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return pid


def _note(attempt: AttemptTrace, record: Record) -> None:
    if record["type"] == "started":
        attempt.start_step = record["startStep"]
    elif record["type"] == "metric":
        attempt.steps.append(record["step"])
    elif record["type"] == "checkpoint":
        attempt.checkpoints.append(record["step"])
