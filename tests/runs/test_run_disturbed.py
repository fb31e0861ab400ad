"""Runs that are killed, paused, stopped or wrong: nothing lost, nothing doubled, and the end is said."""

import os
import signal
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from living import BERT, Told
from prepared import CONFIG, EVALUATED, STEPS, Finished, Prepared

from kargah.client import ApiError
from kargah.spec.control import read_exit
from kargah.spec.lock import holder_pid


def _kinds(events: list[Told], kind: str) -> list[dict[str, Any]]:
    return [event.data for event in events if event.data["type"] == kind]


def _refused(prepared: Prepared, path: str, code: str, body: Any = None) -> ApiError:
    with pytest.raises(ApiError) as refused:
        prepared.live.client.post(path, body)
    assert refused.value.code == code
    return refused.value


@dataclass(frozen=True)
class Battered:
    """A run that went through a dead server, a dead program, and both at once; what was seen on the way."""

    run_id: str
    pids: list[int]
    told: list[Told]
    attached: dict[str, Any]
    behind_both: dict[str, Any]


@pytest.fixture(scope="session")
def battered(prepared: Prepared, finished: Finished) -> Battered:
    live, run_id = prepared.live, prepared.start()
    prepared.until_step(run_id, 10)

    # The server dies; the program goes on (it is frozen only so that it cannot reach its end meanwhile).
    pids = [prepared.freeze(run_id)]
    live.kill()
    assert holder_pid(prepared.folder(run_id).lock) == pids[0]
    live.start()
    attached = prepared.status(run_id)
    os.kill(pids[0], signal.SIGCONT)

    # The program dies.
    prepared.until_step(run_id, attached["step"] + 45)
    assert prepared.freeze(run_id) == pids[0]
    os.kill(pids[0], signal.SIGKILL)
    reached = prepared.status(run_id)["step"]
    prepared.until_attempt(run_id, 2)
    prepared.until_step(run_id, reached + 20)

    # Both die.
    pids.append(prepared.freeze(run_id))
    live.kill()
    os.kill(pids[1], signal.SIGKILL)
    live.start()
    told = live.events(prepared.stream(run_id))
    return Battered(run_id, pids, told, attached, prepared.status(run_id))


def test_a_dead_server_is_no_matter_to_the_program(battered: Battered) -> None:
    assert battered.attached["status"] == "running"
    assert battered.attached["attempt"]["number"] == 1
    assert battered.attached["attempt"]["pid"] == battered.pids[0]
    assert battered.attached["step"] >= 10


def test_each_death_is_one_attempt_and_the_run_completes(prepared: Prepared, battered: Battered) -> None:
    assert battered.behind_both["status"] == "completed"
    assert battered.behind_both["attempt"]["number"] == 3
    assert battered.pids[0] != battered.pids[1]
    assert prepared.folder(battered.run_id).attempt_numbers() == [1, 2, 3]
    deaths = [line["message"] for line in battered.behind_both["logs"] if "died without an ending" in line["message"]]
    assert len(deaths) == 2
    assert battered.told[-1].data["status"] == "completed"


def test_every_step_is_there_once_with_the_numbers_of_an_unbroken_run(
    prepared: Prepared, finished: Finished, battered: Battered
) -> None:
    losses = prepared.losses(battered.run_id)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses == prepared.losses(finished.run_id)
    evaluations = {
        row["step"]: row["accuracy"] for row in prepared.export(battered.run_id) if row["accuracy"] is not None
    }
    assert list(evaluations) == EVALUATED


def test_its_checkpoints_stand_on_the_disk_as_they_are_listed(prepared: Prepared, battered: Battered) -> None:
    listed = prepared.live.client.get("/api/training/assets", runId=battered.run_id)
    on_disk = {path.name for path in prepared.folder(battered.run_id).checkpoints.glob("step-*")}
    assert {f"step-{asset['step']:08d}" for asset in listed} == on_disk
    assert [asset["step"] for asset in listed if asset["last"]] == [STEPS]


def test_pause_and_resume_change_no_number(prepared: Prepared, finished: Finished) -> None:
    live, run_id = prepared.live, prepared.start()
    prepared.until_step(run_id, 40)
    assert live.client.post(f"/api/training/pause/{run_id}")["status"] == "pausing"
    live.follow(prepared.stream(run_id), lambda data: data.get("status") == "paused")
    paused = prepared.status(run_id)
    assert paused["attempt"]["pid"] is None
    assert holder_pid(prepared.folder(run_id).lock) is None
    assert paused["step"] < STEPS
    (last,) = [asset for asset in live.client.get("/api/training/assets", runId=run_id) if asset["last"]]
    assert last["step"] == paused["step"]
    # What it will go on with stays here as long as it rests.
    for asset_id in (BERT, prepared.opinions, last["id"]):
        with pytest.raises(ApiError) as refused:
            live.client.delete(f"/api/assets/{asset_id}")
        assert refused.value.code == "IN_USE"
    _refused(prepared, f"/api/training/pause/{run_id}", "INVALID_STATE")
    assert live.client.post(f"/api/training/resume/{run_id}")["status"] == "queued"
    assert live.events(prepared.stream(run_id))[-1].data["status"] == "completed"
    assert prepared.status(run_id)["attempt"]["number"] == 2
    assert prepared.losses(run_id) == prepared.losses(finished.run_id)


def test_stop_ends_with_a_checkpoint_and_the_queue_waits_its_turn(prepared: Prepared) -> None:
    live = prepared.live
    run_id = prepared.start(config={**CONFIG, "maxSteps": 100_000, "checkpointEverySteps": 100_000})
    waiting = prepared.start()
    prepared.until_step(run_id, 5)
    queue = prepared.status(waiting)["queue"]
    assert (queue["position"], queue["waitsFor"]) == (1, "slot")
    assert live.client.post(f"/api/training/stop/{waiting}")["status"] == "stopped"
    assert live.events(prepared.stream(waiting))[-1].data["status"] == "stopped"
    pid = prepared.freeze(run_id)
    for _ in range(2):
        assert live.client.post(f"/api/training/stop/{run_id}")["status"] == "stopping"
    os.kill(pid, signal.SIGCONT)
    live.events(prepared.stream(run_id))
    stopped = prepared.status(run_id)
    assert stopped["status"] == "stopped"
    assert "message" not in stopped
    assert stopped["progress"] < 100
    (last,) = [asset for asset in live.client.get("/api/training/assets", runId=run_id) if asset["last"]]
    assert last["step"] == stopped["step"] == max(prepared.losses(run_id))
    assert list(prepared.losses(run_id)) == list(range(1, stopped["step"] + 1))
    ended = read_exit(prepared.folder(run_id).attempt(1).exit)
    assert ended is not None
    assert ended.outcome == "stopped"


def test_a_checkpoint_teaches_and_is_held_meanwhile(prepared: Prepared, finished: Finished) -> None:
    live = prepared.live
    teacher = prepared.status(finished.run_id)["bestCheckpoint"]
    config = {**CONFIG, "maxSteps": 20, "distillationAlpha": 0.7, "distillationTemperature": 3.0}
    run_id = prepared.start(teacherModel={"id": teacher, "kind": "checkpoint"}, config=config)
    for asset_id in (teacher, BERT, prepared.opinions):
        with pytest.raises(ApiError) as refused:
            live.client.delete(f"/api/assets/{asset_id}")
        assert refused.value.code == "IN_USE"
        assert refused.value.details == {"holders": [f"run:{run_id}"]}
    live.events(prepared.stream(run_id))
    row = prepared.status(run_id)
    assert (row["status"], row["teacherModel"]) == ("completed", teacher)
    assert any("teacher" in line["message"] for line in row["logs"])
    # Against the teacher's soft words the same data gives other losses than hard labels do.
    plain = prepared.losses(finished.run_id)
    assert all(abs(loss - plain[step]) > 1e-6 for step, loss in prepared.losses(run_id).items())
    assert prepared.live.client.get("/api/analysis/training/jobs", model=teacher)[0]["id"] == run_id


def test_what_only_the_program_can_find_fails_once_with_a_sentence(prepared: Prepared) -> None:
    lora = {"rank": 2, "targetModules": ["LayerNorm"]}
    run_id = prepared.start(config={**CONFIG, "lora": lora})
    last = prepared.live.events(prepared.stream(run_id))[-1].data
    assert (last["status"], last["final"], last["error"]) == ("failed", True, "SPEC_INVALID")
    row = prepared.status(run_id)
    assert (row["status"], row["error"], row["attempt"]["number"]) == ("failed", "SPEC_INVALID", 1)
    assert row["config"]["lora"]["targetModules"] == ["LayerNorm"]
    persian = httpx.get(f"{prepared.live.url}/api/training/status/{run_id}", trust_env=False).json()["data"]
    assert "lora.targetModules" in persian["message"]
    assert "گزارش" in persian["message"]
    assert persian["message"] != row["message"]
    assert str(prepared.live.home) not in row["message"]
