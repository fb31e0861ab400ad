"""The training program: `python -m kargah.compute.train RUN_DIR [--attempt N]`.

Its first moments are standard library only: it takes the run's lock, so that whoever looks sees it alive, and makes
signals mean "pause"; torch and transformers are imported after that. It ends with the exit code 0 (completed, stopped,
paused), 1 (failed, `exit.json` says why), 2 (wrong arguments) or 75 (another process has the run).
"""

import argparse
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from kargah.spec.control import EXIT_REFUSED, Exit, Outcome, write_exit
from kargah.spec.journal import JournalWriter
from kargah.spec.layout import AttemptDir, RunDir
from kargah.spec.lock import FileLock, LockHeld

if TYPE_CHECKING:
    from kargah.compute.wishes import Wishes

RESERVE = ".reserve"
RESERVE_BYTES = 128 * 1024
"""Room kept on the disk for an attempt's last words: on a full one they could not be written otherwise."""


def main(argv: list[str] | None = None) -> int:
    """Run one attempt to its end. Returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m kargah.compute.train", description="Train one attempt of a run.")
    parser.add_argument("run_dir", type=Path, help="run directory with its spec.json")
    parser.add_argument("--attempt", type=int, help="number of the attempt; the next one when it is left out")
    arguments = parser.parse_args(argv)
    if not arguments.run_dir.is_dir():
        parser.error(f"there is no run directory {arguments.run_dir}")
    run_dir = RunDir(arguments.run_dir.resolve())
    try:
        with FileLock(run_dir.lock):
            number = arguments.attempt or max(run_dir.attempt_numbers(), default=0) + 1
            attempt = run_dir.attempt(number)
            if attempt.journal.is_file() and attempt.journal.stat().st_size > 0:
                parser.error(f"attempt {number} was made already")
            return _attempt(run_dir, number, attempt)
    except LockHeld as held:
        print(f"refused: {held}", file=sys.stderr)
        return EXIT_REFUSED


def _attempt(run_dir: RunDir, number: int, attempt: AttemptDir) -> int:
    from kargah.compute.peaks import peak_memory
    from kargah.compute.sink import Log
    from kargah.compute.wishes import Wishes

    wishes = Wishes(run_dir.control)
    wishes.obey_signals()
    journal = JournalWriter(attempt.journal)
    reserve = attempt.root / RESERVE
    ended, best = _train(run_dir, number, journal, wishes, reserve)
    failed = ended.outcome is Outcome.FAILED
    try:
        if failed:
            Log(journal).failed(ended)
        details = {**ended.params, "detail": ended.detail} if failed else {"bestCheckpoint": best}
        details |= peak_memory()
        journal.append(
            "finished", durable=True, status=ended.outcome.value, step=ended.step, error=ended.error, details=details
        )
        journal.close()
    finally:
        write_exit(attempt.exit, ended, reserve)
    return 1 if failed else 0


def _train(
    run_dir: RunDir, number: int, journal: JournalWriter, wishes: "Wishes", reserve: Path
) -> tuple[Exit, str | None]:
    """Train; every error becomes an `Exit`. Beside it the name of the best checkpoint."""
    from kargah.compute.failures import exit_of
    from kargah.compute.heartbeat import Heartbeat
    from kargah.compute.sink import Log

    step = 0
    try:
        reserve.write_bytes(b"\0" * RESERVE_BYTES)
        Heartbeat(run_dir.attempt(number).heartbeat).beat()
        Log(journal).info("loading")
        from kargah.compute.attempt import Progress, run_attempt

        progress = Progress()
        try:
            ending = run_attempt(run_dir, number, journal, wishes, progress)
        finally:
            step = progress.step
        return Exit(ending.outcome, ending.step), ending.best_checkpoint
    except Exception as error:  # noqa: BLE001 - the outermost edge: its reader must learn of whatever it was
        ended = exit_of(error, step)
        if ended.error == "INTERNAL":
            traceback.print_exc()
        return ended, None


if __name__ == "__main__":
    sys.exit(main())
