"""Living programs that say nothing, programs that found the disk full, and one look that goes wrong."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from test_run_states import put_run

from kargah.app.platform import Platform
from kargah.ground.ids import now
from kargah.runs import supervisor as supervising
from kargah.runs.executor import LocalExecutor
from kargah.runs.models import AttemptRow, RunRow
from kargah.runs.silence import Silence
from kargah.runs.states import RunState
from kargah.runs.supervisor import HungPolicy, Supervisor
from kargah.spec.control import Exit, Outcome, write_exit
from kargah.spec.layout import RunDir

# A program that holds the lock of a run, as the training program does, and does nothing else.
HOLDS = (
    "import sys, time; from pathlib import Path; from kargah.spec.lock import FileLock;"
    "lock = FileLock(Path(sys.argv[1]) / 'lock'); lock.acquire(); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def quiet(platform: Platform) -> Platform:
    platform.supervisor.stop()
    return platform


def _supervisor(platform: Platform, hung: HungPolicy) -> Supervisor:
    capacity = platform.supervisor.capacity
    return Supervisor(platform.database, platform.ledger, platform.registry, LocalExecutor(), capacity, hung)


def _attempt(platform: Platform, status: RunState, **values: Any) -> tuple[str, RunDir]:
    run_id = put_run(platform, status, attempt=1, total_steps=30, **values)
    with platform.database.write() as session:
        session.add(AttemptRow(run_id=run_id, number=1, state="running", pid=1, host="h", started_at=now()))
    run_dir = platform.supervisor.run_dir(run_id)
    run_dir.attempt(1).root.mkdir(parents=True)
    return run_id, run_dir


def _run(platform: Platform, run_id: str) -> RunRow:
    with platform.database.read() as session:
        return session.get_one(RunRow, run_id)


@contextmanager
def _holder(run_dir: RunDir) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDS, str(run_dir.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def _lines(api: TestClient, run_id: str) -> list[str]:
    answer = api.get(f"/api/analysis/training/status/{run_id}", headers={"Accept-Language": "en"})
    return [line["message"] for line in answer.json()["data"]["logs"]]


def test_silence_is_measured_from_the_last_sign_that_was_seen(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    attempt.root.mkdir(parents=True)
    silence = Silence()
    assert silence.listen(attempt) == (0, False)
    first, _ = silence.listen(attempt)
    assert 0 < first < silence.listen(attempt)[0]
    attempt.heartbeat.touch()
    assert silence.listen(attempt) == (0, True)
    # A clock that was set far back or ahead is a sign like any other: how old it says it is does not matter.
    os.utime(attempt.heartbeat, (1, 1))
    assert silence.listen(attempt) == (0, True)
    seconds, spoke = silence.listen(attempt)
    assert 0 < seconds < 60
    assert not spoke
    attempt.journal.touch()
    assert silence.listen(attempt) == (0, True)
    silence.forget(attempt)
    assert silence.listen(attempt) == (0, False)


def test_a_living_program_that_says_nothing_is_flagged_until_it_speaks(quiet: Platform, api: TestClient) -> None:
    run_id, run_dir = _attempt(quiet, RunState.RUNNING)
    watching = _supervisor(quiet, HungPolicy(0.2, "flag"))
    with _holder(run_dir) as program:
        watching.look()
        assert _run(quiet, run_id).silent_since is None
        _until(lambda: (watching.look(), _run(quiet, run_id).silent_since is not None)[1])
        row = api.get("/api/analysis/training/jobs").json()["data"][0]
        assert (row["status"], row["silentSince"] is not None) == ("running", True)
        assert program.poll() is None
        run_dir.attempt(1).heartbeat.touch()
        watching.look()
        assert _run(quiet, run_id).silent_since is None
        said = _lines(api, run_id)
        assert "said nothing" in said[0]
        assert "gets on" in said[1]
    # A server that was started again does not take the flag back before it knows better.
    with quiet.database.write() as session:
        session.get_one(RunRow, run_id).silent_since = now()
    with _holder(run_dir):
        other = _supervisor(quiet, HungPolicy(600, "flag"))
        other.look()
        other.look()
        assert _run(quiet, run_id).silent_since is not None


def test_a_hung_program_is_ended_where_the_policy_says_so(quiet: Platform, api: TestClient) -> None:
    run_id, run_dir = _attempt(quiet, RunState.RUNNING, num_losses=3)
    watching = _supervisor(quiet, HungPolicy(0.2, "restart"))
    with _holder(run_dir) as program:
        # Not even one that is stopped withstands it.
        os.kill(program.pid, signal.SIGSTOP)
        _until(lambda: (watching.look(), program.poll() is not None)[1])
    watching.look()
    run = _run(quiet, run_id)
    assert (run.status, run.error, run.silent_since) == ("failed", "RUN_LOST", None)
    assert "it is ended" in _lines(api, run_id)[0]
    # With 0 seconds nobody listens.
    run_id, run_dir = _attempt(quiet, RunState.RUNNING)
    deaf = _supervisor(quiet, HungPolicy(0, "restart"))
    with _holder(run_dir) as program:
        deaf.look()
        deaf.look()
        assert program.poll() is None


def test_a_run_that_does_not_obey_is_ended_by_force(quiet: Platform, api: TestClient) -> None:
    run_id, run_dir = _attempt(quiet, RunState.RUNNING, step=7)
    with _holder(run_dir) as program:
        os.kill(program.pid, signal.SIGSTOP)
        assert api.post(f"/api/training/stop/{run_id}").json()["data"]["status"] == "stopping"
        quiet.supervisor.look()
        assert _run(quiet, run_id).status == "stopping"
        assert api.post(f"/api/training/stop/{run_id}?force=true").json()["data"]["status"] == "stopping"
        assert program.wait(30) == -signal.SIGKILL
    quiet.supervisor.look()
    assert _run(quiet, run_id).status == "stopped"


def test_a_full_disk_pauses_a_run_until_there_is_room(
    quiet: Platform, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [10_000_000]
    monkeypatch.setattr(quiet.home, "free_bytes", lambda: free[0])
    monkeypatch.setattr(supervising, "ROOM_EVERY_SECONDS", 0.0)
    run_id, run_dir = _attempt(quiet, RunState.RUNNING, step=12)
    other, other_dir = _attempt(quiet, RunState.PREPARING)
    for folder in (run_dir, other_dir):
        write_exit(folder.attempt(1).exit, Exit(Outcome.FAILED, 12, "DISK_FULL", retryable=True))
    quiet.supervisor.look()
    for paused in (run_id, other):
        row = api.get(f"/api/training/status/{paused}", headers={"Accept-Language": "en"}).json()["data"]
        assert (row["status"], row["error"]) == ("paused", "DISK_FULL")
        assert "disk" in row["message"].lower()
    assert "the disk is full" in _lines(api, run_id)[-1]
    assert _run(quiet, run_id).num_losses == 0
    needed = (_run(quiet, run_id).error_params or {})["neededBytes"]
    # A person who pauses it means it: room alone does not bring it back.
    assert api.post(f"/api/training/pause/{other}").status_code == 202
    quiet.supervisor.look()
    assert _run(quiet, run_id).status == "paused"
    free[0] = needed + 1
    quiet.supervisor.look()
    # There is no spec to start from here: that it was started at all is what is looked for.
    run = _run(quiet, run_id)
    assert (run.status, run.error) == ("failed", "SPEC_INVALID")
    assert any("room on the disk again" in line for line in _lines(api, run_id))
    assert _run(quiet, other).status == "paused"
    assert api.post(f"/api/training/resume/{other}").json()["data"]["status"] == "queued"
    assert _run(quiet, other).error is None


@pytest.mark.parametrize("status", [RunState.STOPPING, RunState.PAUSING])
def test_a_wish_outweighs_a_full_disk(quiet: Platform, status: RunState) -> None:
    run_id, run_dir = _attempt(quiet, status, wish="pause" if status is RunState.PAUSING else "stop")
    write_exit(run_dir.attempt(1).exit, Exit(Outcome.FAILED, 12, "DISK_FULL", retryable=True))
    quiet.supervisor.look()
    assert _run(quiet, run_id).status == {"stopping": "stopped", "pausing": "paused"}[status]


def test_a_look_that_goes_wrong_harms_no_other_run(quiet: Platform) -> None:
    broken, broken_dir = _attempt(quiet, RunState.RUNNING)
    # What no program writes: an ending that is none.
    broken_dir.attempt(1).exit.write_text("[]", encoding="utf-8")
    good, good_dir = _attempt(quiet, RunState.RUNNING)
    write_exit(good_dir.attempt(1).exit, Exit(Outcome.COMPLETED, 30))
    quiet.supervisor.look()
    assert _run(quiet, good).status == "completed"
    quiet.supervisor.look()
    assert _run(quiet, broken).status == "running"


def test_a_child_of_a_killed_server_that_has_no_lock_yet_is_not_started_twice(quiet: Platform) -> None:
    run_id, run_dir = _attempt(quiet, RunState.PREPARING)
    command = [sys.executable, "-c", "import time; time.sleep(600)", str(run_dir.root)]
    with subprocess.Popen(command, start_new_session=True) as child:
        with quiet.database.write() as session:
            attempt = session.get_one(AttemptRow, (run_id, 1))
            attempt.pid, attempt.state = child.pid, "starting"
        quiet.supervisor.look()
        assert _run(quiet, run_id).attempt == 1
        child.kill()
    with quiet.database.write() as session:
        # The number now belongs to somebody else's process.
        session.get_one(AttemptRow, (run_id, 1)).pid = os.getpid()
    quiet.supervisor.look()
    assert _run(quiet, run_id).attempt != 1 or _run(quiet, run_id).status == "failed"


def _until(holds: Any) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)
