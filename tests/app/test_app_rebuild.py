"""The database made again from the files: what every route answered before, it answers afterwards."""

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from living import BERT, PATIENCE_SECONDS, Living, MakeLiving
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.app.rebuild.rebuilding import rebuild
from kargah.app.server import Application
from kargah.ground.db import Database
from kargah.ground.ids import new_id
from kargah.ground.settings import Settings
from kargah.spec.control import Exit, Outcome, write_exit
from kargah.spec.journal import JournalWriter
from kargah.spec.layout import RunDir, checkpoint_name, write_json
from kargah.spec.lock import holder_pid

SHORT = {"maxSteps": 24, "batchSize": 8, "maxLength": 24, "seed": 3, "logEverySteps": 1, "checkpointEverySteps": 8}
LONG = {**SHORT, "maxSteps": 4000, "checkpointEverySteps": 500}
WRONG = {**SHORT, "lora": {"targetModules": ["LayerNorm"]}}
SIDE_FILES = ("", "-wal", "-shm")


def _wait(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def _answers(living: Living) -> dict[str, Any]:
    """What a client can see."""
    get = living.client.get
    runs = [run["runId"] for run in get("/api/analysis/training/jobs")]
    datasets = [dataset["id"] for dataset in get("/api/datasets")]
    paths = [
        *("/api/catalog/models", "/api/catalog/datasets", "/api/catalog/requests", "/api/assets", "/api/datasets"),
        *("/api/downloads", "/api/analysis/training/jobs", "/api/training/queue", "/api/training/assets"),
        *(f"/api/datasets/{dataset}" for dataset in datasets),
        *(f"/api/training/{verb}/{run}" for run in runs for verb in ("status",)),
        *(f"/api/analysis/training/status/{run}" for run in runs),
        *(f"/api/training/assets?runId={run}" for run in runs),
    ]
    answers = {path: get(path) for path in paths}
    for download in answers["/api/downloads"]:
        # The file that was on its way is a live figure: no restart keeps it.
        download.pop("file")
    return answers


def _differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two answers differ, and how."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [line for key in {**one, **other} for line in _differing(one.get(key), other.get(key), f"{place}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) != len(other):
        return [f"{place}: lacks {[item for item in one if item not in other]!r:.600}, new {len(other)}/{len(one)}"]
    if isinstance(one, list) and isinstance(other, list):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for number, (a, b) in pairs for line in _differing(a, b, f"{place}[{number}]")]
    return [] if one == other else [f"{place}: {one!r:.200} != {other!r:.200}"]


def _without_database(living: Living) -> None:
    for suffix in SIDE_FILES:
        Path(f"{living.home / 'kargah.db'}{suffix}").unlink(missing_ok=True)


def _start(living: Living, dataset: str, config: dict[str, Any], name: str) -> str:
    body = {"baseModel": BERT, "datasets": [dataset], "config": config, "name": name}
    return str(living.client.post("/api/training/start", body)["runId"])


def _status(living: Living, run_id: str) -> dict[str, Any]:
    return dict(living.client.get(f"/api/training/status/{run_id}"))


@pytest.mark.timeout(600)
def test_every_answer_is_the_same_and_the_queue_goes_on(make_living: MakeLiving, model_hub: str, tiny: Path) -> None:
    living = make_living(hub_endpoint=model_hub, local_runs="1")
    client = living.client
    dataset = living.upload(tiny / "opinions", "نظرهای کوتاه 🌱")
    living.fetch(BERT)
    client.post("/api/catalog/requests", {"id": "org/wanted", "kind": "model", "reason": "لازم است"})
    declined = client.post("/api/catalog/requests", {"id": "org/other", "kind": "dataset", "reason": "شاید"})
    client.post(f"/api/catalog/requests/{declined['requestId']}/decline", {"note": "نه"})

    finished, failed = _start(living, dataset, SHORT, "تمام"), _start(living, dataset, WRONG, "نادرست")
    for run_id in (finished, failed):
        living.events(f"/api/training/stream/{run_id}")
    pinned = client.get("/api/training/assets", runId=finished)[0]["id"]
    client.post(f"/api/training/checkpoints/{pinned}/pin", {"pinned": True})
    battered = _start(living, dataset, {**SHORT, "maxSteps": 120}, "کشته‌شده")
    pid = _wait(lambda: (_status(living, battered)["attempt"] or {}).get("pid"))
    _wait(lambda: _status(living, battered)["step"])
    os.kill(pid, signal.SIGKILL)
    living.events(f"/api/training/stream/{battered}")
    paused = _start(living, dataset, LONG, "مکث‌شده")
    _wait(lambda: _status(living, paused)["step"])
    client.post(f"/api/training/pause/{paused}")
    _wait(lambda: _status(living, paused)["status"] == "paused")

    # One trains on (frozen only so that it says nothing meanwhile), the others wait in an order of their own.
    alive = _start(living, dataset, {**SHORT, "maxSteps": 160}, "زنده")
    _wait(lambda: _status(living, alive)["step"])
    pid = _status(living, alive)["attempt"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    first, second = _start(living, dataset, SHORT, "نخست"), _start(living, dataset, SHORT, "دوم")
    client.post(f"/api/training/queue/{second}", {"position": 1})

    time.sleep(0.5)  # what the frozen program wrote last is taken in
    before = _answers(living)
    assert [run["status"] for run in before["/api/analysis/training/jobs"]].count("queued") == 2
    refused = living.run("doctor", "--rebuild")
    assert refused.returncode == 1, "a server works on the directory"
    assert "HOME_IN_USE" in refused.stderr
    living.terminate()
    _without_database(living)
    done = living.run("doctor", "--rebuild", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["rebuilt"]["runs"], told["leftOut"], told["former"]) == (7, [], None)
    assert told["rebuilt"]["requests"] == 2
    assert holder_pid(RunDir(living.home / "runs" / alive).lock) == pid
    living.start()
    after = _answers(living)
    differences = [line for path, answer in before.items() for line in _differing(answer, after.get(path), path)]
    assert not differences, "\n".join(differences)
    assert after.keys() == before.keys()

    # What was under way goes on: the same child, the queue in its order.
    assert _status(living, alive)["attempt"]["pid"] == pid
    os.kill(pid, signal.SIGCONT)
    for run_id in (alive, second, first):
        assert living.events(f"/api/training/stream/{run_id}")[-1].data["status"] == "completed"
    assert _status(living, second)["startedAt"] < _status(living, first)["startedAt"]
    assert _status(living, alive)["attempt"]["number"] == 1
    steps = [row["step"] for row in _status(living, alive)["history"]]
    assert steps == list(range(1, 161))
    # And once more, with the former database at hand.
    before = _answers(living)
    living.terminate()
    told = json.loads(living.run("doctor", "--rebuild", "--json").stdout)
    assert (told["formerWasRead"], told["leftOut"]) == (True, [])
    assert Path(told["former"]).is_file()
    living.start()
    assert _answers(living) == before


def test_a_download_goes_on_from_its_byte(make_living: MakeLiving, model_hub: str) -> None:
    living = make_living(hub_endpoint=model_hub, download_bytes_per_second="30000")
    begun = living.client.post("/api/models/download/start", {"modelId": BERT})
    _wait(lambda: (living.client.get("/api/downloads") or [{}])[0].get("bytesDownloaded"))
    living.client.post("/api/models/download/pause", {"modelId": BERT})
    (brought,) = _wait(lambda: [one for one in living.client.get("/api/downloads") if one["phase"] == "paused"])
    before = _answers(living)
    living.terminate()
    _without_database(living)
    assert living.run("doctor", "--rebuild").returncode == 0
    living.settings["download_bytes_per_second"] = "0"
    living.start()
    assert _answers(living) == before
    living.client.post("/api/models/download/resume", {"modelId": BERT})
    last = living.events("/api/models/download/progress", modelId=BERT)[-1].data
    assert (last["status"], last["downloadId"]) == ("done", begun["downloadId"])
    assert last["resumedBytes"] >= brought["bytesDownloaded"] > 0


@pytest.fixture
def home(settings: Settings) -> Path:
    return settings.home


def _opened(settings: Settings) -> TestClient:
    return TestClient(
        Application(Platform(settings)).asgi, base_url="http://127.0.0.1", headers={"Accept-Language": "en"}
    )


def _put_run(home: Path, *, steps: int = 3, run_id: str | None = None) -> RunDir:
    run_dir = RunDir(home / "runs" / (run_id or new_id()))
    run_dir.root.mkdir(parents=True)
    data = {"id": "d", "path": "/not/here", "version": "v", "columns": {"text": "t", "label": "l"}}
    spec = {
        "runId": run_dir.root.name,
        "name": "اجرا",
        "task": "text-classification",
        "baseModel": {"id": BERT, "path": "/not/here"},
        "datasets": [data],
        "config": {},
    }
    write_json(run_dir.spec, spec)
    journal = JournalWriter(run_dir.attempt(1).journal)
    journal.append("started", attempt=1, pid=1, host="h", startStep=0, totalSteps=steps)
    for step in range(1, steps + 1):
        values = {"loss": 1 / step, "learningRate": 0.1, "throughput": 5.0}
        journal.append("metric", step=step, epoch=step / 10, **values)
    name = checkpoint_name(steps)
    (run_dir.checkpoints / name).mkdir(parents=True)
    journal.append("checkpoint", step=steps, epoch=0.1, name=name, sizeBytes=1, metrics={}, best=False)
    journal.close()
    write_exit(run_dir.attempt(1).exit, Exit(Outcome.COMPLETED, steps))
    return run_dir


def _seen(settings: Settings) -> dict[str, Any]:
    with _opened(settings) as api:
        answers = {path: api.get(path).json()["data"] for path in ("/api/assets", "/api/analysis/training/jobs")}
        for run in answers["/api/analysis/training/jobs"]:
            path = f"/api/training/status/{run['runId']}"
            answers[path] = api.get(path).json()["data"]
        return answers


def test_what_only_a_former_database_knew_is_kept_when_it_can_be_read(settings: Settings, home: Path) -> None:
    run_dir = _put_run(home)
    first = rebuild(settings)
    assert (first.counts["runs"], first.counts["steps"], first.former) == (1, 3, None)
    with sqlite3.connect(home / "kargah.db") as database:
        database.execute("UPDATE runs SET job_id = 'd0d0', last_checkpoint = 'c0c0'")
        database.execute("UPDATE assets SET id = 'c0c0' WHERE kind = 'checkpoint'")
    before = _seen(settings)
    # As an installation is that never kept records.
    shutil.rmtree(home / "records")
    run_dir.record.unlink()
    (run_dir.root / "checkpoints.json").unlink()
    second = rebuild(settings)
    assert (second.former_was_read, second.left_out) == (True, [])
    assert _seen(settings) == before
    assert before["/api/analysis/training/jobs"][0]["lastCheckpoint"] == "c0c0"


def test_a_former_database_that_cannot_be_read_is_kept_and_nothing_else_is_lost(settings: Settings, home: Path) -> None:
    _put_run(home)
    rebuild(settings)
    before = _seen(settings)
    for suffix in SIDE_FILES:
        Path(f"{home / 'kargah.db'}{suffix}").write_bytes(b"rubbish" * 1000)
    done = rebuild(settings)
    assert (done.former_was_read, done.left_out) == (False, [])
    assert done.former is not None
    assert done.former.read_bytes().startswith(b"rubbish")
    assert _seen(settings) == before
    assert not list(home.glob(".kargah.db*")), "nothing is left beside it"


def test_what_cannot_be_read_is_left_out_and_told(settings: Settings, home: Path) -> None:
    good, unspecified, foreign, cut = (_put_run(home) for _ in range(4))
    rebuild(settings)
    unspecified.spec.unlink()
    foreign.root.rename(home / "runs" / "mine")
    good.record.write_text("{", encoding="utf-8")
    with open(cut.attempt(1).journal, "a", encoding="utf-8") as file:
        file.write("{damaged\n")
    (home / "records" / "requests").mkdir(parents=True)
    (home / "records" / "requests" / "x.json").write_text('{"version": 1, "id": "x"}', encoding="utf-8")
    for suffix in SIDE_FILES:
        Path(f"{home / 'kargah.db'}{suffix}").unlink(missing_ok=True)
    done = rebuild(settings)
    assert {(one.path.name, one.reason) for one in done.left_out} == {
        (unspecified.root.name, "noSpec"),
        ("mine", "notAdopted"),
        (good.root.name, "recordDamaged"),
        ("journal.jsonl", "journalDamaged"),
        ("x.json", "recordDamaged"),
    }
    assert (done.counts["runs"], done.counts["steps"]) == (2, 6)
    assert unspecified.attempt(1).journal.exists()


def test_the_store_alone_brings_models_and_data_sets_back(make_living: MakeLiving, model_hub: str, tiny: Path) -> None:
    living = make_living(hub_endpoint=model_hub)
    dataset = living.upload(tiny / "opinions", "نظرها")
    living.fetch(BERT)
    ids = {asset["id"] for asset in living.client.get("/api/assets")}
    living.terminate()
    _without_database(living)
    shutil.rmtree(living.home / "records")
    done = living.run("doctor", "--rebuild", lang="fa")
    assert done.returncode == 0
    assert "از نو ساخته شد" in done.stdout
    living.start()
    assert {asset["id"] for asset in living.client.get("/api/assets")} == ids
    assert living.client.get(f"/api/datasets/{dataset}/rows")["total"] > 0
    assert living.client.post("/api/models/download/start", {"modelId": BERT})["status"] == "ready"


def test_a_run_that_ended_unseen_is_settled_by_the_next_server(settings: Settings, home: Path) -> None:
    """A server's record says `running`; the program ended while nobody looked, and the database went with it."""
    run_dir = _put_run(home)
    rebuild(settings)
    record = json.loads(run_dir.record.read_text(encoding="utf-8"))
    record |= {"status": "running", "finishedAt": None}
    record["attempts"][0] |= {"state": "running", "endedAt": None}
    write_json(run_dir.record, record)
    (home / "kargah.db").unlink()
    assert rebuild(settings).left_out == []
    with _opened(settings) as api:
        path = f"/api/training/status/{run_dir.root.name}"
        _wait(lambda: api.get(path).json()["data"]["status"] == "completed")
        told = api.get(path).json()["data"]
    assert (told["jobId"], told["step"], len(told["history"])) == (record["jobId"], 3, 3)


def test_streams_of_before_begin_anew(settings: Settings, home: Path) -> None:
    run_dir = _put_run(home)
    rebuild(settings)
    with _opened(settings) as api:
        stream = f"/api/training/stream/{run_dir.root.name}"
        for last in ("1", "99999"):
            text = api.get(stream, headers={"Last-Event-ID": last}).text
            assert '"type":"reset"' in text.replace(" ", ""), last


def test_many_small_runs(settings: Settings, home: Path) -> None:
    for _ in range(60):
        _put_run(home, steps=5)
    done = rebuild(settings)
    assert (done.counts["runs"], done.counts["steps"], done.counts["checkpoints"]) == (60, 300, 60)
    database = Database(f"sqlite:///{home / 'kargah.db'}")
    with database.read() as session:
        numbers = session.connection().exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name='events'").scalar()
    database.close()
    assert (numbers or 0) > 100_000_000
