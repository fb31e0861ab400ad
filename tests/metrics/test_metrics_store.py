"""`training_metrics`: one row a step, filled by training and evaluation, overwritten whole by a later attempt."""

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kargah.ground.db import Database
from kargah.metrics import store
from kargah.metrics.store import Point

RUN = "a" * 32
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def _training(step: int, loss: float | None, *, odd: dict[str, str] | None = None) -> Point:
    values = {"loss": loss, "throughput": 10.0, "learning_rate": 1e-3}
    return Point(step, step / 10, values, odd or {}, T0 + timedelta(seconds=step))


def _evaluation(step: int, val_loss: float | None, accuracy: float, *, odd: dict[str, str] | None = None) -> Point:
    return Point(step, step / 10, {"val_loss": val_loss, "accuracy": accuracy}, odd or {}, T0)


def _write(database: Database, attempt: int, *points: Point, run_id: str = RUN) -> None:
    with database.write() as session:
        store.write_points(session, run_id, attempt, points)


def _rows(database: Database, run_id: str = RUN) -> list[dict[str, Any]]:
    with database.read() as session:
        return list(store.every_step(session, run_id))


def test_metric_and_evaluation_of_one_step_are_one_row_in_either_order(database: Database) -> None:
    _write(database, 1, _training(10, 0.5), _evaluation(10, 0.4, 0.9))
    _write(database, 1, _evaluation(20, 0.3, 0.8), _training(20, 0.2))
    assert [(row["step"], row["loss"], row["valLoss"], row["accuracy"]) for row in _rows(database)] == [
        (10, 0.5, 0.4, 0.9),
        (20, 0.2, 0.3, 0.8),
    ]


def test_a_later_attempt_overwrites_a_step_whole(database: Database) -> None:
    _write(database, 1, _training(10, 0.5, odd={"throughput": "Infinity"}), _evaluation(10, 0.4, 0.9))
    _write(database, 2, _training(10, 0.6))
    (row,) = _rows(database)
    assert (row["loss"], row["valLoss"], row["accuracy"]) == (0.6, None, None)
    assert "nonFinite" not in row
    _write(database, 2, _evaluation(10, 0.7, 0.1))
    (row,) = _rows(database)
    assert (row["loss"], row["valLoss"], row["accuracy"]) == (0.6, 0.7, 0.1)
    with database.read() as session:
        assert session.connection().exec_driver_sql("SELECT DISTINCT attempt FROM training_metrics").all() == [(2,)]


def test_the_same_part_twice_changes_nothing(database: Database) -> None:
    points = [_training(10, 0.5), _evaluation(10, None, 0.9, odd={"val_loss": "NaN"}), _training(20, 0.4)]
    _write(database, 1, *points)
    before = _rows(database)
    _write(database, 1, *points)
    assert _rows(database) == before


def test_what_was_not_finite_is_named_beside_null(database: Database) -> None:
    _write(
        database, 1, _training(10, None, odd={"loss": "NaN"}), _evaluation(10, None, 0.5, odd={"val_loss": "-Infinity"})
    )
    (row,) = _rows(database)
    assert (row["loss"], row["valLoss"]) == (None, None)
    assert row["nonFinite"] == {"loss": "NaN", "valLoss": "-Infinity"}
    _write(database, 2, _training(10, None, odd={"loss": "Infinity"}))
    assert _rows(database)[0]["nonFinite"] == {"loss": "Infinity"}


def test_a_rolled_back_transaction_stores_nothing(database: Database) -> None:
    def write() -> None:
        with database.write() as session:
            store.write_points(session, RUN, 1, [_training(10, 0.5)])
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert _rows(database) == []


def test_steps_behind_the_end_are_forgotten_of_that_run_alone(database: Database) -> None:
    for run_id in (RUN, "b" * 32):
        _write(database, 1, *(_training(step, 0.1) for step in (10, 20, 30)), run_id=run_id)
    with database.write() as session:
        store.drop_after(session, RUN, 20)
    assert [row["step"] for row in _rows(database)] == [10, 20]
    assert [row["step"] for row in _rows(database, "b" * 32)] == [10, 20, 30]


def test_history_is_sampled_and_every_step_is_not(database: Database) -> None:
    _write(database, 1, *(_training(step, 9.0 if step == 777 else 1.0 / step) for step in range(1, 3001)))
    with database.read() as session:
        history = store.history(session, RUN, 50)
        assert len(history) <= 50
        assert [row["step"] for row in history] == sorted(row["step"] for row in history)
        assert max(row["loss"] for row in history) == 9.0
        part = store.history(session, RUN, 50, 100, 120)
        assert [row["step"] for row in part] == list(range(100, 121))
    assert len(_rows(database)) == 3000


def test_newest_logs_come_oldest_first(database: Database) -> None:
    with database.write() as session:
        for number in range(600):
            store.write_log(session, RUN, 1, "info", f"خط {number}", {"n": number}, T0)
        store.write_log(session, "b" * 32, 1, "info", "of another run", None, T0)
        told = store.write_log(session, RUN, 1, "info", "keyed", {"n": 1}, T0, "dataRead")
    with database.read() as session:
        logs = store.newest_logs(session, RUN)
    assert logs.pop() == told
    assert (told["key"], logs[0]["key"]) == ("dataRead", None)
    assert [line["message"] for line in logs] == [f"خط {number}" for number in range(101, 600)]
    assert logs[0]["type"] == logs[0]["level"] == "info"
    assert logs[0]["timestamp"] == "2026-01-01T00:00:00.000Z"


def test_forgetting_a_run_leaves_nothing_of_it(database: Database) -> None:
    _write(database, 1, _training(10, 0.5))
    _write(database, 1, _training(10, 0.5), run_id="b" * 32)
    with database.write() as session:
        store.write_log(session, RUN, 1, "info", "m", None, T0)
        store.forget(session, RUN)
    with database.read() as session:
        assert store.newest_logs(session, RUN) == []
    assert _rows(database) == []
    assert len(_rows(database, "b" * 32)) == 1


def test_the_table_is_readable_by_plain_sql(database: Database) -> None:
    _write(database, 1, _training(10, 0.5), _evaluation(10, 0.4, 0.9))
    assert database.file is not None
    with sqlite3.connect(f"file:{database.file}?mode=ro", uri=True) as plain:
        plain.row_factory = sqlite3.Row
        (row,) = plain.execute("SELECT * FROM training_metrics WHERE run_id = ?", (RUN,)).fetchall()
    assert list(row.keys()) == [
        "run_id", "step", "epoch", "loss", "val_loss", "accuracy", "throughput", "learning_rate", "attempt",
        "non_finite", "timestamp",
    ]  # fmt: skip
    assert (row["step"], row["loss"], row["val_loss"], row["attempt"]) == (10, 0.5, 0.4, 1)


def test_curves_of_several_runs_have_every_value_at_every_shown_step(database: Database) -> None:
    """Null means not measured, not left out: what one run shows, the other shows too."""
    runs = {RUN: 777, "b" * 32: 1500}
    for run_id, spike_at in runs.items():
        points = (_training(step, 9.0 if step == spike_at else 1.0 / step) for step in range(1, 2001))
        _write(database, 1, *points, run_id=run_id)
    _write(database, 1, _training(2001, 0.5), run_id=RUN)
    with database.read() as session:
        steps, curves = store.curves(session, list(runs), "loss", 40)
    assert len(steps) <= 80
    assert steps == sorted(set(steps))
    assert {777, 1500, 2001} <= set(steps)
    first, second = curves
    assert None not in first
    assert [value for step, value in zip(steps, second, strict=True) if step <= 2000 and value is None] == []
    assert second[steps.index(2001)] is None
    assert (first[steps.index(777)], second[steps.index(777)]) == (9.0, 1.0 / 777)
