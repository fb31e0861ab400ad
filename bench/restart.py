"""How soon a server that was killed has its runs again, with many finished ones beside them.

The finished runs are rows and directories as a server and training programs leave them, written here through the real
tables. The active ones are processes that hold their run's lock and journal a step five times a second, and train
nothing (`bench.lively_program`).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Table as SqlTable
from sqlalchemy import insert
from sqlalchemy.orm import Session

from bench.drill.recipes import DATASET, MODEL
from bench.report import Goal, Row, Table, load_note
from bench.server import Server
from kargah.assets.models import AssetRow
from kargah.ground.db import Database
from kargah.ground.events import EventRow
from kargah.ground.ids import new_id, rfc3339
from kargah.metrics.models import TrainingMetricRow
from kargah.runs.checkpoint_ids import checkpoint_id
from kargah.runs.ledger import record_of
from kargah.runs.models import AttemptRow, RunRow
from kargah.spec.journal import read_journal
from kargah.spec.layout import RunDir, checkpoint_name
from kargah.spec.run_spec import DatasetRef, ModelRef, RunSpec, TrainConfig

GOAL_SECONDS = 3.0
NUM_ACTIVE = 20
NUM_METRICS = 50
TOTAL_STEPS = 1_000_000
ROWS_AT_ONCE = 500
DOWN_SECONDS = 2.0
WAIT_SECONDS = 120.0
FIRST = datetime(2026, 1, 1, tzinfo=UTC)

_ANSWERS = "answers"
_ATTACHED = "every active run attached"


def measure(*, quick: bool) -> Table:
    """One table. About 2 minutes when `quick`, else 5."""
    num_finished, times = (2_000, 2) if quick else (10_000, 7)
    table = Table(
        "A killed server is started again, from its process on",
        {_ANSWERS: "{:.2f} s", _ATTACHED: "{:.2f} s"},
        notes=[
            f"the {NUM_ACTIVE} active runs are processes that hold the run's lock and journal 5 steps a second, and "
            "train nothing",
            f"a finished run has {NUM_METRICS} steps in the database and the event log, its directory, two checkpoints",
            "attached: listed as running with a step that was journalled after the server's start",
        ],
    )
    load = os.getloadavg()
    full = _contestant(f"{num_finished:,} finished runs, {NUM_ACTIVE} active", num_finished, NUM_ACTIVE, times)
    table.rows = [
        full,
        _contestant(f"no finished run, {NUM_ACTIVE} active", 0, NUM_ACTIVE, times),
        _contestant("an empty data directory", 0, 0, times),
    ]
    table.goals = [
        Goal("seconds until every run is attached, the worst", max(full.values[_ATTACHED]), GOAL_SECONDS, True)
    ]
    table.notes.append(load_note(load))
    return table


def _contestant(name: str, num_finished: int, num_active: int, times: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="kargah-bench-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder) / "home", local_runs=str(max(1, num_active)))
        server.start()  # it makes the tables and brings in what it carries
        server.terminate()
        database = Database(f"sqlite:///{server.home / 'kargah.db'}")
        for first in range(0, num_finished, ROWS_AT_ONCE):
            with database.write() as session:
                _write_finished(session, server.home, range(first, min(first + ROWS_AT_ONCE, num_finished)))
        active = _Active(server.home, database, num_active)
        database.close()
        try:
            server.start()
            active.wait_attached(server)
            measured = [_restart(server, active) for _ in range(times)]
        finally:
            active.close()
            server.close()
    values = {_ANSWERS: [answers for answers, _ in measured]}
    if num_active:
        values[_ATTACHED] = [attached for _, attached in measured]
    return Row(name, values)


def _restart(server: Server, active: "_Active") -> tuple[float, float]:
    """Seconds until the server answers, and until it shows of every active run what came after its start."""
    server.kill()
    time.sleep(DOWN_SECONDS)
    begun = time.perf_counter()
    server.spawn()
    active.remember_steps()
    server.wait_ready()
    answers = time.perf_counter() - begun
    return answers, active.wait_attached(server) - begun


@dataclass(slots=True)
class _Program:
    run_dir: RunDir
    process: subprocess.Popen[bytes]
    offset: int = 0
    step: int = 0


class _Active:
    """Runs whose programs live."""

    def __init__(self, home: Path, database: Database, num_runs: int) -> None:
        self._programs: dict[str, _Program] = {}
        for number in range(num_runs):
            run = _run_row(home, number, "running")
            run_dir = _make_directory(home, run)
            command = [sys.executable, "-m", "bench.lively_program", str(run_dir.root), str(TOTAL_STEPS)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            self._programs[run.id] = _Program(run_dir, process)
            attempt = _attempt_row(run, "running", process.pid)
            with database.write() as session:
                session.add(run)
                session.flush()
                session.add(attempt)
                run_dir.record.write_text(json.dumps(record_of(run, [attempt])), encoding="utf-8")

    def remember_steps(self) -> None:
        """What the journals tell by now: what is newer must arrive."""
        for program in self._programs.values():
            part = read_journal(program.run_dir.attempt(1).journal, program.offset)
            program.offset = part.offset
            program.step = max([program.step, *(record.get("step", 0) for record in part.records)])

    def wait_attached(self, server: Server) -> float:
        """Wait until the server shows a newer step of every run. Returns when that was (`perf_counter`).

        Then each run's status is looked at too: it must name the program that lives. Raises `TimeoutError`.
        """
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            shown = {job.run_id: job.step for job in server.asker.runs.list(status="running")} if self._programs else {}
            if all(shown.get(run_id, 0) > program.step for run_id, program in self._programs.items()):
                attached = time.perf_counter()
                for run_id, program in self._programs.items():
                    status = server.asker.runs.status(run_id, max_points=2)
                    assert status.attempt is not None, "a running run has an attempt"
                    assert status.attempt.pid == program.process.pid, "the program that lives is the one shown"
                return attached
            time.sleep(0.02)
        raise TimeoutError(f"not every run was attached within {WAIT_SECONDS:.0f} s")

    def close(self) -> None:
        """Let the programs end."""
        for program in self._programs.values():
            assert program.process.stdin is not None
            program.process.stdin.close()
        for program in self._programs.values():
            program.process.wait()


def _write_finished(session: Session, home: Path, numbers: Iterable[int]) -> None:
    runs = [_run_row(home, number, "completed") for number in numbers]
    session.add_all(runs)
    session.flush()
    attempts = [_attempt_row(run, "exited", None) for run in runs]
    session.add_all(attempts)
    for run, attempt in zip(runs, attempts, strict=True):
        run_dir = _make_directory(home, run)
        _leave_behind(run_dir, run)
        run_dir.record.write_text(json.dumps(record_of(run, [attempt])), encoding="utf-8")
    _insert(session, AssetRow.__table__, (row for run in runs for row in _checkpoints(run)))
    _insert(session, TrainingMetricRow.__table__, (row for run in runs for row in _metrics(run)))
    _insert(session, EventRow.__table__, (row for run in runs for row in _events(run)))


def _insert(session: Session, table: Any, rows: Iterator[dict[str, Any]]) -> None:
    assert isinstance(table, SqlTable)
    session.execute(insert(table), list(rows))


def _run_row(home: Path, number: int, status: str) -> RunRow:
    ended = status == "completed"
    at = FIRST + timedelta(minutes=number)
    spec = RunSpec(
        run_id=new_id(),
        name=f"run {number}",
        task="text-classification",
        base_model=ModelRef(MODEL, str(home / "models" / "base")),
        datasets=[DatasetRef(DATASET, str(home / "datasets" / "rows"), "v1", {"text": "text", "label": "label"})],
        config=TrainConfig(log_every_steps=1),
        created_at=rfc3339(at),
    )
    return RunRow(
        id=spec.run_id,
        job_id=new_id(),
        name=spec.name,
        status=status,
        task=spec.task,
        base_model=MODEL,
        datasets=[DATASET],
        spec=spec.to_json(),
        wish="run",
        wish_seq=0,
        attempt=1,
        num_losses=0,
        queued_at=at,
        step=NUM_METRICS if ended else 0,
        total_steps=NUM_METRICS if ended else TOTAL_STEPS,
        train_loss=0.5,
        last_checkpoint=checkpoint_id(spec.run_id, checkpoint_name(NUM_METRICS)) if ended else None,
        created_at=at,
        started_at=at,
        finished_at=at + timedelta(minutes=1) if ended else None,
    )


def _attempt_row(run: RunRow, state: str, pid: int | None) -> AttemptRow:
    return AttemptRow(
        run_id=run.id,
        number=1,
        state=state,
        pid=pid,
        host=os.uname().nodename,
        journal_offset=0,
        start_step=0,
        advanced=pid is None,
        started_at=run.created_at,
        ended_at=run.finished_at,
    )


def _make_directory(home: Path, run: RunRow) -> RunDir:
    run_dir = RunDir(home / "runs" / run.id)
    run_dir.attempt(1).root.mkdir(parents=True)
    run_dir.spec.write_text(json.dumps(run.spec), encoding="utf-8")
    run_dir.control.write_text(json.dumps({"seq": 0, "wish": "run"}), encoding="utf-8")
    return run_dir


def _leave_behind(run_dir: RunDir, run: RunRow) -> None:
    """What a training program leaves of a run that it finished."""
    attempt = run_dir.attempt(1)
    run_dir.lock.touch()
    attempt.output.touch()
    attempt.heartbeat.touch()
    at = rfc3339(run.created_at)
    lines = [
        {"seq": step, "at": at, "type": "metric", "step": step, "epoch": step / NUM_METRICS, "loss": 1.0 / step}
        for step in range(1, NUM_METRICS + 1)
    ]
    attempt.journal.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    ended = {"outcome": "completed", "step": NUM_METRICS, "error": None, "params": {}, "detail": None}
    attempt.exit.write_text(json.dumps({**ended, "retryable": False, "at": at}), encoding="utf-8")
    for step in (NUM_METRICS // 2, NUM_METRICS):
        folder = run_dir.checkpoints / checkpoint_name(step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text('{"files": {}}', encoding="utf-8")


def _checkpoints(run: RunRow) -> Iterator[dict[str, Any]]:
    for step in (NUM_METRICS // 2, NUM_METRICS):
        name = checkpoint_name(step)
        yield {
            "kind": "checkpoint",
            "id": checkpoint_id(run.id, name),
            "name": f"{run.name} · {step}",
            "source": "training",
            "status": "ready",
            "size_bytes": 0,
            "path": f"runs/{run.id}/checkpoints/{name}",
            "run_id": run.id,
            "facts": {"step": step, "last": step == NUM_METRICS, "best": step != NUM_METRICS, "attempt": 1},
            "created_at": run.created_at,
        }


def _metrics(run: RunRow) -> Iterator[dict[str, Any]]:
    for step in range(1, NUM_METRICS + 1):
        values = {"loss": 1.0 / step, "throughput": 100.0, "learning_rate": 1e-4}
        place = {"run_id": run.id, "step": step, "epoch": step / NUM_METRICS, "attempt": 1}
        yield {**place, **values, "timestamp": run.created_at}


def _events(run: RunRow) -> Iterator[dict[str, Any]]:
    for step in range(1, NUM_METRICS + 1):
        data = json.dumps(
            {"runId": run.id, "step": step, "loss": 1.0 / step, "learningRate": 1e-4, "throughput": 100.0}
        )
        yield {"topic": f"runs:{run.id}", "type": "metric", "data": data, "created_at": run.created_at}
