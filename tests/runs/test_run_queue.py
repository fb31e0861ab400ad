"""The queue by its rows: order, slots, memory, GPUs; and what a run that waits is told."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from test_run_states import put_run

from kargah.app.platform import Platform
from kargah.ground.ids import now
from kargah.runs import memory
from kargah.runs.executor import LocalExecutor, child_environment
from kargah.runs.ledger import read_record
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.queue import Capacity, WaitsFor, free_gpu, waiting_runs
from kargah.runs.states import RunState
from kargah.spec.run_spec import DatasetRef, LoraConfig, ModelRef, RunSpec, TrainConfig

GB = 10**9


@pytest.fixture
def quiet(platform: Platform) -> Platform:
    """A platform whose supervisor looks only when it is told to."""
    platform.supervisor.stop()
    return platform


def _queued(platform: Platform, place: int, reserved_bytes: int | None = None) -> str:
    return put_run(platform, RunState.QUEUED, place=place, reserved_bytes=reserved_bytes)


def _waits(platform: Platform, capacity: Capacity) -> list[tuple[str, str]]:
    with platform.database.read() as session:
        return [(one.run_id, one.waits_for.value) for one in waiting_runs(session, capacity)]


def test_runs_start_in_their_order_as_far_as_slots_go(quiet: Platform) -> None:
    second, first, third = _queued(quiet, 2), _queued(quiet, 1), _queued(quiet, 3)
    assert _waits(quiet, Capacity(2, GB)) == [(first, "supervisor"), (second, "supervisor"), (third, "slot")]
    put_run(quiet, RunState.PAUSING)
    assert _waits(quiet, Capacity(2, GB)) == [(first, "supervisor"), (second, "slot"), (third, "turn")]
    put_run(quiet, RunState.RUNNING)
    assert _waits(quiet, Capacity(2, GB)) == [(first, "slot"), (second, "turn"), (third, "turn")]


def test_two_that_do_not_fit_together_do_not_run_together(quiet: Platform) -> None:
    big, small = _queued(quiet, 1, 6 * GB), _queued(quiet, 2, 1 * GB)
    capacity = Capacity(8, 10 * GB)
    assert _waits(quiet, capacity) == [(big, "supervisor"), (small, "supervisor")]
    busy = put_run(quiet, RunState.RUNNING, reserved_bytes=5 * GB)
    with quiet.database.read() as session:
        told = waiting_runs(session, capacity)
    # The small one would fit, but does not overtake: the big one would never come to its turn.
    assert [(one.run_id, one.waits_for) for one in told] == [(big, WaitsFor.MEMORY), (small, WaitsFor.TURN)]
    assert (told[0].needed_bytes, told[0].free_bytes) == (6 * GB, 5 * GB)
    assert _waits(quiet, replace(capacity, memory_bytes=11 * GB))[0] == (big, "supervisor")
    # One that fits nowhere may try alone, and only alone.
    with quiet.database.write() as session:
        session.get_one(RunRow, busy).status = RunState.STOPPED
    assert _waits(quiet, replace(capacity, memory_bytes=2 * GB)) == [(big, "supervisor"), (small, "memory")]


def test_a_run_is_moved_and_its_place_is_kept_on_disk(quiet: Platform, api: TestClient) -> None:
    ids = [_queued(quiet, place) for place in (1, 2, 3)]
    for run_id in ids:
        (quiet.home.runs / run_id).mkdir()

    def move(run_id: str, position: Any) -> Any:
        return api.post(f"/api/training/queue/{run_id}", json={"position": position})

    def order() -> list[str]:
        return [one["runId"] for one in api.get("/api/training/queue").json()["data"]["waiting"]]

    newest = quiet.events.last_id()
    moved = move(ids[2], 1).json()["data"]
    assert [one["runId"] for one in moved["waiting"]] == order() == [ids[2], ids[0], ids[1]]
    assert [event.data["order"] for event in quiet.events.after(["system"], newest)] == [order()]
    records = [read_record(quiet.supervisor.run_dir(run_id)) for run_id in order()]
    assert [record["place"] for record in records if record] == [1, 2, 3]
    move(ids[2], 99)
    assert order() == [ids[0], ids[1], ids[2]]
    move(ids[0], 2)
    assert order() == [ids[1], ids[0], ids[2]]
    for position in (0, -1, "x", None, 1.5, True):
        assert move(ids[0], position).json()["error"] == "VALIDATION_FAILED", position
    assert move("none", 1).json()["error"] == "RUN_NOT_FOUND"
    paused = put_run(quiet, RunState.PAUSED)
    (quiet.home.runs / paused).mkdir()
    assert move(paused, 1).json()["error"] == "INVALID_STATE"
    # Who comes back, and who is new, stands at the end; who leaves has no place.
    api.post(f"/api/training/resume/{paused}")
    assert order()[-1] == paused
    api.post(f"/api/training/stop/{ids[1]}")
    assert order() == [ids[0], ids[2], paused]
    with quiet.database.read() as session:
        assert session.get_one(RunRow, ids[1]).place is None


def test_who_waits_is_told_for_what(quiet: Platform, api: TestClient) -> None:
    quiet.supervisor.capacity = Capacity(4, 10 * GB)
    put_run(quiet, RunState.RUNNING, reserved_bytes=9_600_000_000)
    waits = _queued(quiet, 1, 1_500_000_000)
    said = {}
    for language in ("fa", "en"):
        answer = api.get(f"/api/training/status/{waits}", headers={"Accept-Language": language})
        queue = answer.json()["data"]["queue"]
        assert (queue["waitsFor"], queue["neededBytes"], queue["freeBytes"]) == ("memory", 1_500_000_000, 400_000_000)
        said[language] = queue["message"]
    assert "1.5 GB" in said["en"]
    assert "400 MB" in said["en"]
    assert "۱٫۵ گیگابایت" in said["fa"]
    assert "۴۰۰ مگابایت" in said["fa"]
    whole = api.get("/api/training/queue").json()["data"]
    assert (whole["slots"], whole["memoryBytes"], whole["reservedBytes"]) == (4, 10 * GB, 9_600_000_000)
    assert len(whole["running"]) == 1


def test_runs_share_out_the_gpus(quiet: Platform) -> None:
    capacity = Capacity(3, GB, gpus=(0, 1, 3))
    with quiet.database.read() as session:
        assert free_gpu(session, replace(capacity, gpus=())) is None
        assert free_gpu(session, capacity) == 0
    for number, gpu in enumerate((0, 1)):
        run_id = put_run(quiet, RunState.RUNNING, attempt=1)
        ended = now() if number else None
        with quiet.database.write() as session:
            attempt = AttemptRow(run_id=run_id, number=1, state="running", pid=1, host="h", started_at=now())
            attempt.gpu, attempt.ended_at = gpu, ended
            session.add(attempt)
    with quiet.database.read() as session:
        assert free_gpu(session, capacity) == 1
        assert free_gpu(session, replace(capacity, gpus=(0,))) == 0


def test_a_program_sees_its_gpu_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert child_environment(2)["CUDA_VISIBLE_DEVICES"] == "2"
    assert child_environment()["CUDA_VISIBLE_DEVICES"] == "1,2"
    # None of those that the server may see is there.
    if not os.path.exists("/dev/nvidia1"):
        assert LocalExecutor.gpus() == ()


def _spec(folder: Path, **config: Any) -> RunSpec:
    base = ModelRef(id="org/model", path=str(folder))
    data = DatasetRef(id="d", path=str(folder), version="v", columns={})
    return RunSpec("r", "n", "text-classification", base, [data], TrainConfig(**config))


def test_what_a_run_reserves_follows_what_it_asks_for(tmp_path: Path) -> None:
    weights = 400_000_000
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(weights)
    config = tmp_path / "config.json"
    config.write_text('{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}', encoding="utf-8")
    plain = memory.reservation(_spec(tmp_path, batch_size=8, max_length=128))
    # Weights, two moments, gradients, and a copy of all but the gradients while a checkpoint is written.
    least = memory.RUNTIME_BYTES + (3 + 1 + 3) * weights
    assert least < plain < least + GB
    assert memory.reservation(_spec(tmp_path, batch_size=8, max_length=128, optimizer="sgd")) == plain - 4 * weights
    longer = memory.reservation(_spec(tmp_path, batch_size=8, max_length=512))
    assert longer - least > 4 * (plain - least)
    adapted = memory.reservation(_spec(tmp_path, batch_size=8, max_length=128, lora=LoraConfig(rank=8)))
    assert adapted < plain - 4 * weights
    taught = replace(_spec(tmp_path, batch_size=8), teacher_model=ModelRef(id="org/teacher", path=str(tmp_path)))
    assert memory.reservation(taught) == plain + weights
    config.write_text('{"hidden_size": 768, "num_hidden_layers": 12, "dtype": "float16"}', encoding="utf-8")
    assert memory.reservation(_spec(tmp_path)) > plain + 6 * weights
    config.write_text("no json", encoding="utf-8")
    assert memory.reservation(_spec(tmp_path)) == least


def test_the_memory_for_runs() -> None:
    assert memory.budget(5 * GB) == 5 * GB
    assert 0 < memory.budget(0) < 1e15
