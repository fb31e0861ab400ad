"""Runs that were trained without the server, taken over by it: from journals that are written here, and for real."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from living import BERT, PATIENCE_SECONDS
from prepared import STEPS, Finished, Prepared
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.client import ApiError
from kargah.ground.ids import new_id
from kargah.runs.adoption import Adoptions
from kargah.runs.adoption_tickets import FOLDER, write_ticket
from kargah.runs.checkpoint_ids import checkpoint_id, keep_odd_ids
from kargah.runs.ledger import read_record
from kargah.runs.missing_records import write_missing_records
from kargah.spec.control import Exit, Outcome, write_exit
from kargah.spec.journal import JournalWriter
from kargah.spec.layout import RunDir, checkpoint_name, write_json
from kargah.spec.lock import FileLock, holder_pid

Made = Callable[..., RunDir]


@pytest.fixture
def make_run(tmp_path: Path) -> Made:
    """Makes run directories as the training program leaves them, in one folder."""

    def make(name: str = "", *, run_id: str | None = None, folder: Path = tmp_path / "alone") -> RunDir:
        run_id = run_id or new_id()
        run_dir = RunDir(folder / (name or run_id))
        run_dir.root.mkdir(parents=True)
        spec = {
            "runId": run_id,
            "name": "اجرای تنها",
            "task": "text-classification",
            "baseModel": {"id": BERT, "path": "/not/here"},
            "datasets": [{"id": "d", "path": "/not/here", "version": "v", "columns": {"text": "t", "label": "l"}}],
            "config": {},
            "createdAt": "2030-01-01T00:00:00.000Z",
        }
        write_json(run_dir.spec, spec)
        return run_dir

    return make


def _attempt(run_dir: RunDir, number: int, start: int, end: int, *, checkpoint: int | None = None) -> JournalWriter:
    attempt = run_dir.attempt(number)
    journal = JournalWriter(attempt.journal)
    journal.append("started", attempt=number, pid=1, host="elsewhere", startStep=start, totalSteps=20)
    for step in range(start + 1, end + 1):
        values = {"loss": 1 / (step * number), "learningRate": 0.1, "throughput": 5.0, "gradNorm": 1.0}
        journal.append("metric", step=step, epoch=step / 10, **values)
        if step == checkpoint:
            name = checkpoint_name(step)
            (run_dir.checkpoints / name).mkdir(parents=True)
            (run_dir.checkpoints / name / "model.safetensors").write_bytes(b"w" * 10)
            journal.append(
                "checkpoint", step=step, epoch=step / 10, name=name, sizeBytes=10, metrics={"accuracy": 0.5}, best=True
            )
    journal.append("log", level="info", message="said", key=None, details={"n": number})
    return journal


def _adopt(platform: Platform, path: Path, *, move: bool = False) -> Adoptions:
    return platform.adoption.adopt(path, move=move)


def _status(api: TestClient, run_dir: RunDir) -> dict[str, Any]:
    run_id = json.loads(run_dir.spec.read_text(encoding="utf-8"))["runId"]
    return dict(api.get(f"/api/training/status/{run_id}").json()["data"])


def test_a_completed_run_answers_as_any_other(platform: Platform, api: TestClient, make_run: Made) -> None:
    run_dir = make_run()
    _attempt(run_dir, 1, 0, 12, checkpoint=8).close()
    _attempt(run_dir, 2, 8, 20).close()
    write_exit(run_dir.attempt(2).exit, Exit(Outcome.COMPLETED, 20))
    (one,) = _adopt(platform, run_dir.root).adopted
    run_id = one.run.id
    told = _status(api, run_dir)
    assert (told["status"], told["step"], told["attempt"]["number"]) == ("completed", 20, 2)
    assert told["attempt"]["host"] == "elsewhere"
    assert told["name"] == "اجرای تنها"
    assert [row["step"] for row in told["history"]] == list(range(1, 21))
    assert [row["loss"] for row in told["history"]] == [1 / step for step in range(1, 9)] + [
        1 / (step * 2) for step in range(9, 21)
    ]
    assert [line["message"] for line in told["logs"]] == ["said", "attempt 1 died without an ending", "said"]
    (checkpoint,) = api.get("/api/training/assets", params={"runId": run_id}).json()["data"]
    assert checkpoint["id"] == checkpoint_id(run_id, checkpoint_name(8)) == told["bestCheckpoint"]
    assert (checkpoint["sizeBytes"], checkpoint["best"], checkpoint["last"]) == (10, True, True)
    exported = api.get(f"/api/analysis/training/export/{run_id}", params={"format": "json"}).json()
    assert len(exported) == 20
    # It was copied, what never changes by a link, and a record stands beside it.
    copy = platform.home.runs / run_id
    weights = Path("checkpoints") / checkpoint_name(8) / "model.safetensors"
    assert (copy / weights).samefile(run_dir.root / weights)
    assert not (copy / "attempts/1/journal.jsonl").samefile(run_dir.attempt(1).journal)
    record = read_record(RunDir(copy))
    assert record is not None
    assert (record["jobId"], record["origin"]) == (told["jobId"], {"kind": "adopt"})
    with platform.database.read() as session:
        assert platform.registry.holders(session, "model", BERT) == []


def test_steps_that_the_run_as_it_ended_did_not_reach_are_none_of_it(
    platform: Platform, api: TestClient, make_run: Made
) -> None:
    run_dir = make_run()
    _attempt(run_dir, 1, 0, 15, checkpoint=4).close()
    _attempt(run_dir, 2, 4, 9).close()
    write_exit(run_dir.attempt(2).exit, Exit(Outcome.STOPPED, 9))
    _adopt(platform, run_dir.root)
    told = _status(api, run_dir)
    assert (told["status"], told["step"]) == ("stopped", 9)
    assert [row["step"] for row in told["history"]] == list(range(1, 10))


def test_endings_decide_the_state(platform: Platform, api: TestClient, make_run: Made) -> None:
    endings = {
        "paused": Exit(Outcome.PAUSED, 5),
        "stopped": Exit(Outcome.STOPPED, 5),
        "failed": Exit(Outcome.FAILED, 5, error="UNKNOWN_LABEL", params={"label": "بد"}),
    }
    made = {status: make_run(status) for status in endings}
    made["none"], made["unbegun"] = make_run("none"), make_run("unbegun")
    for status, run_dir in made.items():
        if status != "unbegun":
            _attempt(run_dir, 1, 0, 5, checkpoint=5).close()
        if status in endings:
            write_exit(run_dir.attempt(1).exit, endings[status])
    done = _adopt(platform, made["none"].root.parent)
    assert (len(done.adopted), done.skipped) == (5, [])
    for status in endings:
        told = _status(api, made[status])
        assert told["status"] == status
        assert (told["finishedAt"] is None) == (status == "paused")
    failed = _status(api, made["failed"])
    assert failed["error"] == "UNKNOWN_LABEL"
    assert "بد" in failed["message"]
    for name in ("none", "unbegun"):
        assert _status(api, made[name])["status"] == "paused"
    assert "died without an ending" in _status(api, made["none"])["logs"][-1]["message"]
    with platform.database.read() as session:
        assert len(platform.registry.holders(session, "model", BERT)) == 3


def test_what_cannot_be_taken_over_is_left_and_told(
    platform: Platform, api: TestClient, make_run: Made, tmp_path: Path
) -> None:
    good, known, broken = make_run("a-good"), make_run("b-known"), make_run("c-broken")
    _adopt(platform, known.root)
    broken.spec.write_text('{"runId": 3}', encoding="utf-8")
    done = _adopt(platform, good.root.parent)
    assert [one.run.id for one in done.adopted] == [json.loads(good.spec.read_text(encoding="utf-8"))["runId"]]
    assert [(one.path, one.error.code) for one in done.skipped] == [
        (known.root, "RUN_KNOWN"),
        (broken.root, "SPEC_INVALID"),
    ]
    # Of a damaged journal everything before the damage is taken, and the run says so.
    damaged = make_run("damaged", folder=tmp_path / "more")
    _attempt(damaged, 1, 0, 3).close()
    with open(damaged.attempt(1).journal, "a", encoding="utf-8") as file:
        file.write('{"seq": 9, "type": "metric", "step": 4}\n{"seq": 10, "type": "log"\n')
    _attempt(damaged, 2, 0, 2).close()
    (one,) = _adopt(platform, damaged.root).adopted
    assert one.damaged == [1]
    told = _status(api, damaged)
    assert [row["step"] for row in told["history"]] == [1, 2, 3]
    assert told["history"][0]["loss"] == 0.5, "the later attempt's"
    assert any("journal of attempt 1 is damaged" in line["message"] for line in told["logs"])
    assert [line["message"] for line in told["logs"]].count("said") == 2


def test_moving_takes_it_away_and_only_then(platform: Platform, api: TestClient, make_run: Made) -> None:
    moved, broken = make_run("moved"), make_run("broken")
    broken.spec.write_text("{", encoding="utf-8")
    _attempt(moved, 1, 0, 3, checkpoint=2).close()
    run_id = json.loads(moved.spec.read_text(encoding="utf-8"))["runId"]
    done = _adopt(platform, moved.root.parent, move=True)
    assert (len(done.adopted), len(done.skipped)) == (1, 1)
    assert not moved.root.exists()
    assert broken.root.exists()
    assert (platform.home.runs / run_id / "checkpoints" / checkpoint_name(2)).is_dir()


def test_links_that_lead_away_are_not_followed(platform: Platform, make_run: Made, tmp_path: Path) -> None:
    run_dir = make_run()
    _attempt(run_dir, 1, 0, 3, checkpoint=2).close()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("s", encoding="utf-8")
    (run_dir.checkpoints / checkpoint_name(2) / "key").symlink_to(secret / "key")
    (run_dir.checkpoints / "step-00000003").symlink_to(secret)
    (one,) = _adopt(platform, run_dir.root).adopted
    copy = platform.home.runs / one.run.id
    assert not list(copy.rglob("key"))
    assert not (copy / "checkpoints" / "step-00000003").exists()


def test_an_id_of_another_form_gets_one_of_ours_that_stays(platform: Platform, api: TestClient, make_run: Made) -> None:
    run_dir = make_run("mine", run_id="my run")
    _attempt(run_dir, 1, 0, 3).close()
    (one,) = _adopt(platform, run_dir.root).adopted
    assert len(one.run.id) == 32
    assert (
        json.loads((platform.home.runs / one.run.id / "spec.json").read_text(encoding="utf-8"))["runId"] == one.run.id
    )
    (again,) = _adopt(platform, run_dir.root).skipped
    assert again.error.code == "RUN_KNOWN"


def test_an_adoption_that_died_before_its_commit_is_finished_by_the_next(
    platform: Platform, api: TestClient, make_run: Made
) -> None:
    run_dir = make_run()
    _attempt(run_dir, 1, 0, 3).close()
    run_id = json.loads(run_dir.spec.read_text(encoding="utf-8"))["runId"]
    shutil.copytree(run_dir.root, platform.home.runs / run_id)
    (platform.home.runs / f".{run_id}.adopting").mkdir()
    (one,) = _adopt(platform, run_dir.root).adopted
    assert one.run.id == run_id
    assert _status(api, run_dir)["status"] == "paused"


def test_over_http_only_with_a_ticket_that_says_the_same(
    platform: Platform, api: TestClient, make_run: Made, tmp_path: Path
) -> None:
    run_dir = make_run()
    path, home = str(run_dir.root), platform.home.root

    def ask(ticket: str, path: str = path, move: bool = False) -> tuple[int, dict[str, Any]]:
        answer = api.post("/api/training/adopt", json={"path": path, "move": move, "ticket": ticket})
        return answer.status_code, answer.json()

    assert ask("0" * 32)[1]["error"] == "PATH_NOT_ALLOWED"
    status, body = ask(write_ticket(home, run_dir.root, move=False), move=True)
    assert (status, body["error"]) == (403, "PATH_NOT_ALLOWED")
    assert ask(write_ticket(home, tmp_path, move=False))[0] == 403
    assert ask("../" + "0" * 29)[0] == 400
    empty = write_ticket(home, tmp_path, move=False)
    assert ask(empty, str(tmp_path))[1]["details"][0]["field"] == "path"
    word = write_ticket(home, run_dir.root, move=False)
    status, body = ask(word)
    assert (status, [one["status"] for one in body["data"]["adopted"]]) == (200, ["paused"])
    assert ask(word)[0] == 403, "a ticket is used once"
    assert list((home / FOLDER).iterdir()) == []
    again = ask(write_ticket(home, run_dir.root, move=False))[1]["data"]
    assert [(one["path"], one["error"]) for one in again["skipped"]] == [(path, "RUN_KNOWN")]


def test_ids_of_checkpoints_by_chance_are_kept(platform: Platform, api: TestClient, make_run: Made) -> None:
    run_dir = make_run()
    _attempt(run_dir, 1, 0, 5, checkpoint=4).close()
    keep_odd_ids(run_dir, {checkpoint_name(4): "c" * 32})
    (one,) = _adopt(platform, run_dir.root).adopted
    told = _status(api, run_dir)
    assert told["bestCheckpoint"] == told["lastCheckpoint"] == "c" * 32
    # And those that a database from before has are written down, with the run's record.
    copy = RunDir(platform.home.runs / one.run.id)
    before = read_record(copy)
    copy.record.unlink()
    (copy.root / "checkpoints.json").unlink()
    assert write_missing_records(platform.database, platform.home.runs) == 1
    assert read_record(copy) == before
    assert json.loads((copy.root / "checkpoints.json").read_text(encoding="utf-8")) == {checkpoint_name(4): "c" * 32}
    assert write_missing_records(platform.database, platform.home.runs) == 0


def _spec_of(prepared: Prepared, run_id: str, tmp_path: Path) -> tuple[Path, str]:
    spec = json.loads(prepared.folder(run_id).spec.read_text(encoding="utf-8"))
    spec["runId"] = new_id()
    file = tmp_path / "spec.json"
    write_json(file, spec)
    return file, spec["runId"]


def _wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_run_that_was_killed_alone_is_adopted_and_goes_on_as_if_unbroken(
    prepared: Prepared, finished: Finished, tmp_path: Path
) -> None:
    live = prepared.live
    spec, run_id = _spec_of(prepared, finished.run_id, tmp_path)
    alone = RunDir(tmp_path / "تنها" / "run")
    command = live.spawn("train", str(spec), "--run-dir", str(alone.root))
    _wait(lambda: alone.checkpoints.is_dir() and any(alone.checkpoints.glob("step-*")))
    pid = holder_pid(alone.lock)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    # While it lives nobody takes it.
    refused = live.run("runs", "adopt", str(alone.root), "--json")
    assert refused.returncode == 1
    assert [one["error"] for one in json.loads(refused.stdout)["skipped"]] == ["RUN_ALIVE"]
    with pytest.raises(ApiError):
        prepared.status(run_id)

    os.kill(pid, signal.SIGKILL)
    command.communicate()
    assert not alone.attempt(1).exit.exists()
    adopted = live.run("runs", "adopt", str(alone.root.parent), "--json")
    assert adopted.returncode == 0, adopted.stderr
    (told,) = json.loads(adopted.stdout)["adopted"]
    assert (told["runId"], told["status"]) == (run_id, "paused")
    before = prepared.status(run_id)
    assert 0 < before["step"] < STEPS
    assert before["lastCheckpoint"]
    assert live.client.post(f"/api/training/resume/{run_id}")["status"] in ("queued", "preparing", "running")
    ended = live.events(prepared.stream(run_id))[-1].data
    assert ended["status"] == "completed"
    assert prepared.status(run_id)["attempt"]["number"] == 2
    assert prepared.losses(run_id) == prepared.losses(finished.run_id)
    persian = live.run("runs", "adopt", str(alone.root), lang="fa")
    assert persian.returncode == 1
    assert "RUN_KNOWN" in persian.stdout


def test_without_a_server_the_command_does_it_itself(
    prepared: Prepared, make_living: Callable[..., Any], tmp_path: Path, make_run: Made
) -> None:
    run_dir = make_run()
    _attempt(run_dir, 1, 0, 6, checkpoint=3).close()
    write_exit(run_dir.attempt(1).exit, Exit(Outcome.STOPPED, 6))
    other = make_living("other", start=False)
    done = other.run("runs", "adopt", str(run_dir.root.parent), "--move", "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["adopted"]
    assert not run_dir.root.exists()
    assert other.run("runs", "adopt", str(tmp_path / "alone")).returncode == 2
    with FileLock(other.home / "server.lock"):
        busy = other.run("runs", "adopt", str(make_run().root))
        assert busy.returncode == 4, "somebody works on it, and no server answers"
    other.start()
    assert other.client.get(f"/api/training/status/{told['runId']}")["status"] == "stopped"
