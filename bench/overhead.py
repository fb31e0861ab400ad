"""What a run loses by being logged at every step and watched by a server, against HF Trainer as it is.

The same model, rows, batch size, optimizer and one thread, in rounds: the bare trainer, the training program alone, and
a run of the server, which takes every step in while it trains. Beside the logging the two differ in how a batch is made
(ours pads from one flat array, the peer collates lists of numbers) and in the order of the rows.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from functools import partial
from pathlib import Path

import transformers

from bench.drill.recipes import DATASET, MODEL
from bench.report import Goal, Row, Table, load_note
from bench.server import Server
from kargah.client.training_config import TrainingConfig
from kargah.runs.executor import PROGRAM, child_environment
from kargah.spec.journal import read_journal
from kargah.spec.layout import RunDir, read_json, write_json
from kargah.spec.run_spec import RunSpec

GOAL_PERCENT = 1.0
BATCH_SIZE = 16
MAX_LENGTH = 64
FIRST_STEP = 20
"""Steps before it also make what the others reuse."""
WHOLE_JOURNAL_BYTES = 1 << 30
WAIT_SECONDS = 1800.0

BARE = f"HF Trainer {transformers.__version__}, bare"
ALONE = "Kargah's training program alone"
WATCHED = "a run of Kargah's server"
_STEP = "a step"
_THROUGHPUT = "rows a second"
_LOST = "throughput lost against the bare one of the round"


def measure(*, quick: bool) -> Table:
    """One table. About 4 minutes when `quick`, else 15."""
    rounds, last_step = (4, 300) if quick else (9, 800)
    load = os.getloadavg()
    seconds: dict[str, list[float]] = {BARE: [], ALONE: [], WATCHED: []}
    with tempfile.TemporaryDirectory(prefix="kargah-bench-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        server = Server(place / "home", local_runs="1")
        server.start()
        try:
            spec = _watched(server, last_step)[1]  # a first one for the files' sake, not counted
            for number in range(rounds):
                contestants = [
                    (BARE, partial(_bare, spec, last_step)),
                    (ALONE, partial(_alone, place / f"alone-{number}", spec, last_step)),
                    (WATCHED, partial(_watched_seconds, server, last_step)),
                ]
                # Who is first changes, so that a machine that warms up favours nobody.
                for contestant, run in contestants if number % 2 == 0 else reversed(contestants):
                    seconds[contestant].append(run())
        finally:
            server.close()
    num_steps = last_step - FIRST_STEP
    table = Table(
        f"Logged at every step and watched, {num_steps} steps of {BATCH_SIZE} rows, one thread",
        {_STEP: "{:.1f} ms", _THROUGHPUT: "{:.0f}", _LOST: "{:.2f} %"},
    )
    for contestant, took in seconds.items():
        lost = [100 * (1 - bare / ours) for bare, ours in zip(seconds[BARE], took, strict=True)]
        values = {_STEP: [1000 * s / num_steps for s in took], _THROUGHPUT: [BATCH_SIZE * num_steps / s for s in took]}
        table.rows.append(Row(contestant, values | ({} if contestant is BARE else {_LOST: lost})))
    table.goals = [Goal("per cent of throughput lost, median", table.row(WATCHED).median(_LOST), GOAL_PERCENT, True)]
    table.notes = [
        "below zero: faster than the bare trainer, which collates batches from lists and draws its own order of rows",
        load_note(load),
    ]
    return table


def _bare(spec: RunSpec, last_step: int) -> float:
    numbers = [str(number) for number in (BATCH_SIZE, MAX_LENGTH, FIRST_STEP, last_step)]
    command = [sys.executable, "-m", "bench.bare_trainer", spec.base_model.path, spec.datasets[0].path, *numbers]
    done = subprocess.run(command, env=_environment(), check=True, stdout=subprocess.PIPE)
    # Trainer has last words of its own, before ours.
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def _alone(root: Path, spec: RunSpec, last_step: int) -> float:
    run_dir = RunDir(root)
    root.mkdir()
    write_json(run_dir.spec, spec.to_json())
    command = [sys.executable, "-m", PROGRAM, str(root), "--attempt", "1"]
    subprocess.run(command, env=_environment(), check=True)
    return _seconds_in(run_dir, last_step)


def _watched_seconds(server: Server, last_step: int) -> float:
    return _watched(server, last_step)[0]


def _watched(server: Server, last_step: int) -> tuple[float, RunSpec]:
    """Nobody asks the server meanwhile: the run's own file says when it has ended."""
    config = TrainingConfig(
        max_steps=last_step,
        batch_size=BATCH_SIZE,
        max_length=MAX_LENGTH,
        log_every_steps=1,
        eval_every_steps=last_step,
        checkpoint_every_steps=last_step,
    )
    run_id = server.client.runs.start(MODEL, [DATASET], config=config).run_id
    run_dir = RunDir(server.home / "runs" / run_id)
    until = time.monotonic() + WAIT_SECONDS
    while not run_dir.attempt(1).exit.exists():
        if time.monotonic() > until:
            raise TimeoutError("the run did not end")
        time.sleep(0.25)
    server.client.runs.wait(run_id)
    return _seconds_in(run_dir, last_step), RunSpec.from_json(read_json(run_dir.spec))


def _seconds_in(run_dir: RunDir, last_step: int) -> float:
    """From the end of the first counted step to the end of the last one, by the journal."""
    records = read_journal(run_dir.attempt(1).journal, limit_bytes=WHOLE_JOURNAL_BYTES).records
    at = {record["step"]: datetime.fromisoformat(record["at"]) for record in records if record["type"] == "metric"}
    return (at[last_step] - at[FIRST_STEP]).total_seconds()


def _environment() -> dict[str, str]:
    return {**child_environment(), "OMP_NUM_THREADS": "1"}
