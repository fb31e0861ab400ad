"""The supervisor by what it reads: journals, exits and locks on disk, without a training program."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from test_run_states import put_run

from kargah.app.platform import Platform
from kargah.ground.ids import now
from kargah.metrics import store
from kargah.runs.endings import MAX_LOSSES
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.states import ACTIVE, ENDED, RunState
from kargah.spec.control import Exit, Outcome, write_exit
from kargah.spec.journal import JournalWriter
from kargah.spec.layout import AttemptDir

STARTED = {"attempt": 1, "pid": 1, "host": "h", "startStep": 0, "totalSteps": 30}


@pytest.fixture
def quiet(platform: Platform) -> Platform:
    """A platform whose supervisor looks only when it is told to."""
    platform.supervisor.stop()
    return platform


def _attempt(platform: Platform, status: RunState, **values: object) -> tuple[str, AttemptDir]:
    run_id = put_run(platform, status, attempt=1, total_steps=30, **values)
    with platform.database.write() as session:
        session.add(AttemptRow(run_id=run_id, number=1, state="running", pid=1, host="h", started_at=now()))
    folder = platform.supervisor.run_dir(run_id).attempt(1)
    folder.root.mkdir(parents=True)
    return run_id, folder


def _run(platform: Platform, run_id: str) -> RunRow:
    with platform.database.read() as session:
        return session.get_one(RunRow, run_id)


def test_every_ending_in_every_active_state_settles_the_run(quiet: Platform) -> None:
    wanted = {
        Outcome.COMPLETED: {"completed"},
        Outcome.STOPPED: {"stopped"},
        Outcome.PAUSED: {"paused", "stopped"},
        Outcome.FAILED: {"failed"},
    }
    for status, outcome in product(sorted(ACTIVE), Outcome):
        run_id, folder = _attempt(quiet, RunState(status))
        error = "SINGLE_CLASS" if outcome is Outcome.FAILED else None
        write_exit(folder.exit, Exit(outcome, 12, error))
        quiet.supervisor.look()
        run = _run(quiet, run_id)
        assert run.status in wanted[outcome], (status, outcome)
        if outcome is Outcome.PAUSED:
            assert run.status == ("stopped" if status == "stopping" else "paused")
        assert (run.finished_at is not None) == (run.status in ENDED)
        assert run.error == error


def _journal(folder: AttemptDir, *records: tuple[str, dict[str, Any]]) -> None:
    journal = JournalWriter(folder.journal)
    for type, fields in records:
        journal.append(type, **fields)
    journal.close()


def _metric(step: int, loss: float) -> tuple[str, dict[str, Any]]:
    return "metric", {"step": step, "epoch": step / 10, "loss": loss, "learningRate": 1e-3, "throughput": 9.0}


def test_a_journal_is_taken_in_once_and_the_rest_when_it_comes(quiet: Platform) -> None:
    run_id, folder = _attempt(quiet, RunState.PREPARING)
    evaluation = ("evaluation", {"step": 10, "epoch": 1.0, "valLoss": float("nan"), "accuracy": 0.5, "metrics": {}})
    _journal(
        folder,
        ("started", STARTED),
        _metric(10, 0.5),
        evaluation,
        ("log", {"level": "info", "message": "سلام", "details": None}),
    )
    whole = folder.journal.read_bytes()
    # Held by nobody and without an exit it would be lost, so let it look alive: we hold its lock from a child.
    with _held(quiet, run_id):
        for cut in (len(whole) // 2, len(whole) - 3, len(whole)):
            folder.journal.write_bytes(whole[:cut])
            quiet.supervisor.look()
            quiet.supervisor.look()
    with quiet.database.read() as session:
        (row,) = store.every_step(session, run_id)
        logs = store.newest_logs(session, run_id)
    assert (row["step"], row["loss"], row["valLoss"], row["accuracy"]) == (10, 0.5, None, 0.5)
    assert row["nonFinite"] == {"valLoss": "NaN"}
    assert [line["message"] for line in logs] == ["سلام"]
    types = [event.type for event in quiet.events.after([f"runs:{run_id}"], 0)]
    assert types == ["state", "metric", "evaluation", "log"]
    assert _run(quiet, run_id).status == "running"


def test_a_line_of_another_version_keeps_its_own_words(quiet: Platform, api: TestClient) -> None:
    """An older program's journal has no keys; a newer one's may have keys or details that are not known here."""
    run_id, folder = _attempt(quiet, RunState.RUNNING)
    known = {"step": 10, "accuracy": 0.51234, "valLoss": float("nan")}
    lines: list[dict[str, Any]] = [
        {"message": "of old", "details": {"step": 1}},
        {"message": "of tomorrow", "key": "neverHeardOf", "details": {}},
        {"message": "filled otherwise", "key": "evaluated", "details": {"stage": 1}},
        {"message": "no such error", "key": "failed", "details": {"error": "NEVER_HEARD_OF"}},
        {"message": "known", "key": "evaluated", "details": known},
        {"message": "damaged", "key": "failed", "details": {"error": "MODEL_DAMAGED", "detail": "x"}},
    ]
    _journal(folder, *(("log", {"level": "info", **line}) for line in lines))
    with _held(quiet, run_id):
        quiet.supervisor.look()
    path = f"/api/analysis/training/status/{run_id}"
    said = {
        language: api.get(path, headers={"Accept-Language": language}).json()["data"]["logs"]
        for language in ("en", "fa")
    }
    for shown in said.values():
        assert [line["message"] for line in shown[:4]] == [line["message"] for line in lines[:4]]
        assert shown[4]["details"] == {**known, "valLoss": None, "nonFinite": {"valLoss": "NaN"}}
    assert said["en"][4]["message"] == "evaluation at step 10: accuracy 0.5123, loss NaN"
    assert "گام ۱۰: درستی ۰٫۵۱۲۳" in said["fa"][4]["message"]
    base_model = _run(quiet, run_id).base_model
    assert base_model in said["en"][5]["message"]
    assert base_model in said["fa"][5]["message"]


_HOLD = (
    "import sys; from pathlib import Path; from kargah.spec.lock import FileLock\n"
    "FileLock(Path(sys.argv[1])).acquire(); print(flush=True); sys.stdin.read()"
)


@contextmanager
def _held(platform: Platform, run_id: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process holds a run's lock, in a session of its own as a training program does."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(platform.supervisor.run_dir(run_id).lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_whose_program_keeps_dying_is_given_up(quiet: Platform, api: TestClient) -> None:
    run_id, _ = _attempt(quiet, RunState.RUNNING, num_losses=MAX_LOSSES)
    quiet.supervisor.look()
    run = _run(quiet, run_id)
    assert (run.status, run.error) == ("failed", "RUN_LOST")
    shown = api.get(f"/api/training/status/{run_id}").json()["data"]
    assert shown["error"] == "RUN_LOST"
    assert "several times" in shown["message"]
    (line,) = shown["logs"]
    assert line["message"] == "attempt 1 died without an ending"
    persian = api.get(f"/api/training/status/{run_id}", headers={"Accept-Language": "fa"}).json()["data"]
    assert "تلاش ۱" in persian["logs"][0]["message"]


@pytest.mark.parametrize(("status", "ended"), [(RunState.STOPPING, "stopped"), (RunState.PAUSING, "paused")])
def test_a_program_that_dies_while_it_obeys_has_obeyed(quiet: Platform, status: RunState, ended: str) -> None:
    run_id, _ = _attempt(quiet, status)
    quiet.supervisor.look()
    assert _run(quiet, run_id).status == ended


@pytest.mark.parametrize("broken", ['{"seq": 3, "type": "metr\n', '{"seq": 3, "type": "metric"}\n', "[]\n", "7\n"])
def test_one_broken_journal_does_not_end_supervision(quiet: Platform, broken: str) -> None:
    """The run is given up or tried again, and the others go on."""
    bad, bad_folder = _attempt(quiet, RunState.RUNNING, num_losses=MAX_LOSSES)
    _journal(bad_folder, ("started", STARTED), _metric(10, 0.5))
    with open(bad_folder.journal, "a", encoding="utf-8") as file:
        file.write(broken)
    good, good_folder = _attempt(quiet, RunState.RUNNING)
    _journal(good_folder, ("started", STARTED), _metric(10, 0.25))
    write_exit(good_folder.exit, Exit(Outcome.COMPLETED, 30))
    quiet.supervisor.look()
    assert _run(quiet, good).status == "completed"
    assert _run(quiet, bad).status == "failed"


def test_a_living_program_with_a_broken_journal_is_ended_first(quiet: Platform) -> None:
    run_id, folder = _attempt(quiet, RunState.RUNNING, num_losses=MAX_LOSSES)
    folder.journal.write_text("broken\n", encoding="utf-8")
    with _held(quiet, run_id) as program:
        quiet.supervisor.look()
        assert program.wait(30) == -signal.SIGKILL
        quiet.supervisor.look()
    assert _run(quiet, run_id).error == "RUN_LOST"


def test_checkpoints_are_registered_marked_and_forgotten(quiet: Platform, api: TestClient) -> None:
    run_id, folder = _attempt(quiet, RunState.RUNNING)
    root = quiet.supervisor.run_dir(run_id).checkpoints

    def written(step: int, *, best: bool) -> tuple[str, dict[str, Any]]:
        name = f"step-{step:08d}"
        (root / name).mkdir(parents=True, exist_ok=True)
        fields = {"step": step, "epoch": 1.0, "name": name, "sizeBytes": 1000 + step, "metrics": {"accuracy": 0.5}}
        return "checkpoint", {**fields, "best": best}

    _journal(folder, ("started", STARTED), written(10, best=True), written(20, best=False))
    with _held(quiet, run_id):
        quiet.supervisor.look()
        first = {asset["step"]: asset for asset in api.get("/api/training/assets").json()["data"]}
        assert {step: (asset["best"], asset["last"]) for step, asset in first.items()} == {
            10: (True, False),
            20: (False, True),
        }
        run = _run(quiet, run_id)
        assert (run.best_checkpoint, run.last_checkpoint) == (first[10]["id"], first[20]["id"])
        # A deletion the program told of, and one it died before telling of.
        journal = JournalWriter(folder.journal)
        journal.append("checkpointRemoved", name="step-00000010", step=10)
        journal.append(*written(30, best=True)[:1], **written(30, best=True)[1])
        journal.close()
        quiet.supervisor.look()
    (root / "step-00000020").rmdir()
    write_exit(folder.exit, Exit(Outcome.COMPLETED, 30))
    quiet.supervisor.look()
    (kept,) = api.get("/api/training/assets", params={"runId": run_id}).json()["data"]
    assert (kept["step"], kept["best"], kept["last"], kept["runId"]) == (30, True, True, run_id)
    # Deleting it by hand leaves no pointer behind.
    assert api.delete(f"/api/assets/{kept['id']}").status_code == 200
    run = _run(quiet, run_id)
    assert (run.best_checkpoint, run.last_checkpoint) == (None, None)
    assert not (root / "step-00000030").exists()


def test_a_checkpoint_that_a_living_run_may_go_on_from_stays(quiet: Platform, api: TestClient) -> None:
    run_id, folder = _attempt(quiet, RunState.RUNNING)
    name = "step-00000010"
    place = quiet.supervisor.run_dir(run_id).checkpoints / name
    place.mkdir(parents=True)
    fields = {"step": 10, "epoch": 1.0, "name": name, "sizeBytes": 1, "metrics": {}, "best": False}
    _journal(folder, ("started", STARTED), ("checkpoint", fields))
    write_exit(folder.exit, Exit(Outcome.PAUSED, 10))
    quiet.supervisor.look()
    (asset,) = api.get("/api/training/assets").json()["data"]
    answer = api.delete(f"/api/assets/{asset['id']}")
    assert (answer.status_code, answer.json()["error"]) == (409, "IN_USE")
    assert place.is_dir()
    api.post(f"/api/training/stop/{run_id}")
    assert api.delete(f"/api/assets/{asset['id']}").status_code == 200


def test_wishes_of_a_run_that_waits_or_rests(quiet: Platform, api: TestClient) -> None:
    def wish(verb: str, run_id: str) -> tuple[int, str]:
        answer = api.post(f"/api/training/{verb}/{run_id}")
        body = answer.json()
        return answer.status_code, body["data"]["status"] if body["ok"] else body["error"]

    queued, paused = put_run(quiet, RunState.QUEUED), put_run(quiet, RunState.PAUSED)
    assert wish("pause", queued) == (409, "INVALID_STATE")
    assert wish("resume", queued) == (409, "INVALID_STATE")
    status = api.get(f"/api/training/status/{queued}").json()["data"]
    assert status["queue"] == {"position": 1, "waitsFor": "supervisor", "message": "starts at once"}
    assert wish("stop", queued) == (202, "stopped")
    assert wish("stop", queued) == (409, "INVALID_STATE")
    assert wish("resume", paused) == (202, "queued")
    assert wish("stop", paused) == (202, "stopped")
    running = put_run(quiet, RunState.RUNNING)
    (quiet.home.runs / running).mkdir()
    assert wish("pause", running) == (202, "pausing")
    assert wish("pause", running) == (202, "pausing")
    assert wish("stop", running) == (202, "stopping")
    assert wish("stop", running) == (202, "stopping")
    assert wish("pause", running) == (409, "INVALID_STATE")
    control = json.loads((quiet.home.runs / running / "control.json").read_text(encoding="utf-8"))
    assert control == {"seq": 2, "wish": "stop"}
    job_id = _run(quiet, running).job_id
    assert wish("stop", job_id) == (202, "stopping")
    assert wish("resume", job_id) == (409, "INVALID_STATE")
    assert Path(quiet.home.runs / running).is_dir()
