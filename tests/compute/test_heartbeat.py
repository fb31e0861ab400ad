"""The heartbeat follows the work: beaten by it, silent without it."""

import os
from pathlib import Path

import pytest

from kargah.compute.heartbeat import Heartbeat
from kargah.spec.run_spec import ModelRef

from .conftest import MakeRun
from .tiny import ListSink, attempt

LONG_AGO = 1_000_000_000


def test_it_beats_at_most_once_a_second_and_makes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    path = tmp_path / "attempts" / "1" / "heartbeat"
    heartbeat = Heartbeat(path)
    heartbeat.beat()
    assert path.read_bytes() == b""
    os.utime(path, (LONG_AGO, LONG_AGO))
    now = 100.9
    heartbeat.beat()
    assert path.stat().st_mtime == LONG_AGO
    now = 101.1
    heartbeat.beat()
    assert path.stat().st_mtime > LONG_AGO


class Listening(ListSink):
    """At every record, notes its kind if the heart has beaten since the one before, and makes the beat look old."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.beaten: list[str] = []

    def append(self, type: str, *, durable: bool = False, **fields: object) -> None:
        super().append(type, durable=durable, **fields)
        if self.path.is_file() and self.path.stat().st_mtime > LONG_AGO:
            self.beaten.append(str(fields.get("key", type)))
            os.utime(self.path, (LONG_AGO, LONG_AGO))


def test_every_part_of_an_attempt_beats(make_run: MakeRun, trained: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kargah.compute.heartbeat.EVERY_SECONDS", 0.0)
    teacher = ModelRef("t", str(trained.checkpoints / "step-00000060"), "checkpoint")  # type: ignore[attr-defined]
    run_dir = make_run(
        max_steps=3, log_every_steps=1, eval_every_steps=1, checkpoint_every_steps=1, spec={"teacher_model": teacher}
    )
    sink = Listening(run_dir.attempt(1).heartbeat)
    attempt(run_dir, 1, sink=sink)
    # Reading, the teacher's rows tokenised, the run's own, batches, evaluations, a checkpoint's files.
    for key in ("dataRead", "teacherJudges", "trainTokenised", "metric", "evaluation", "checkpoint"):
        assert key in sink.beaten, key
    assert sink.beaten.count("metric") == 3
    assert sink.beaten.count("evaluation") == 3
