"""A process that lives as a training program does: it holds the run's lock and journals a step now and then.

`python -m bench.lively_program RUN_DIR TOTAL_STEPS`: it trains nothing, so that twenty of them fit on any machine. It
ends when its standard input does.
"""

import os
import select
import sys
from pathlib import Path

from kargah.spec.journal import JournalWriter
from kargah.spec.layout import RunDir
from kargah.spec.lock import FileLock

STEP_SECONDS = 0.2


def main(run_dir: RunDir, total_steps: int) -> None:
    """Hold the lock and journal until standard input ends."""
    with FileLock(run_dir.lock):
        journal = JournalWriter(run_dir.attempt(1).journal)
        journal.append("started", durable=True, attempt=1, pid=os.getpid(), startStep=0, totalSteps=total_steps)
        step = 0
        while not select.select([sys.stdin], [], [], STEP_SECONDS)[0]:
            step += 1
            journal.append(
                "metric",
                step=step,
                epoch=step / total_steps,
                loss=1.0 / step,
                learningRate=1e-4,
                throughput=100.0,
                gradNorm=1.0,
            )
        journal.close()


if __name__ == "__main__":
    main(RunDir(Path(sys.argv[1])), int(sys.argv[2]))
