"""The client against a real server: every group of methods, and a server that is killed in the middle of streams."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from living import BERT, PATIENCE_SECONDS, PICKLED, Living, MakeLiving
from small_runs import COLUMNS, CONFIG

import kargah
from kargah.client import (
    Client,
    Conflict,
    Dataset,
    NotFound,
    NotPermitted,
    Refused,
    RunEvent,
    StreamFailed,
    TrainingConfig,
    TrainingStatus,
)

RUN_NAME = "اجرای «کارخواه» 🌱"


@pytest.fixture(scope="session")
def trained(client: Client, opinions: Dataset) -> TrainingStatus:
    """A run that was started, watched and finished by the client."""
    started = client.runs.start(BERT, [opinions], name=RUN_NAME, config=CONFIG)
    return client.runs.wait(started.run_id)


def test_health(client: Client) -> None:
    health = client.health()
    assert (health.status, health.version, health.database) == ("ready", kargah.__version__, "sqlite")
    assert health.model_extra == {}


def test_the_catalog_and_what_is_held(client: Client, opinions: Dataset) -> None:
    approved = {asset.id: asset for asset in client.catalog.models()}
    assert approved[BERT].status == "ready"
    assert approved[BERT].downloaded_at is not None
    assert [asset.id for asset in client.catalog.datasets(q="site/opin")] == ["site/opinions"]
    assert BERT in [asset.id for asset in client.models.list()]
    assert opinions.id in [asset.id for asset in client.datasets.list(q="نظرهای مشتري")]
    one_by_one = [asset.id for asset in client.assets.list(page_size=1)]
    assert one_by_one == [asset.id for asset in client.assets.list()]
    assert len(one_by_one) == client.assets.summary().total == len(set(one_by_one))
    held = client.assets.find(opinions.id, "dataset")
    assert held is not None
    assert (held.name, held.kind) == ("نظرهای مشتری", "dataset")
    assert client.assets.find("org/none", "model") is None


def test_a_fetch_of_what_is_here_and_of_what_cannot_come(client: Client, opinions: Dataset) -> None:
    assert client.models.fetch(BERT).status == "ready"
    assert client.models.download(BERT).started is False
    (ending,) = client.models.progress(BERT)
    assert (ending.status, ending.progress, ending.model_id) == ("done", 100, BERT)
    assert list(client.models.progress(BERT, after=ending.event_id)) == []
    with pytest.raises(StreamFailed) as failed:
        client.models.fetch("site/absent")
    assert failed.value.code == "REPO_NOT_FOUND"
    assert client.models.delete("site/absent").kind == "model"
    with pytest.raises(Refused) as refused:
        client.models.download("org/forbidden")
    assert refused.value.code == "MODEL_NOT_ALLOWED"
    with pytest.raises(NotFound) as missing:
        list(client.datasets.progress("kargah/support-fa"))
    assert missing.value.code == "DOWNLOAD_NOT_FOUND"


def test_a_data_set_of_the_hub(client: Client, opinions: Dataset) -> None:
    fetched = client.datasets.fetch("site/opinions")
    assert fetched.mapping == COLUMNS
    assert {split.name: split.num_rows for split in fetched.splits} == {"train": 90, "validation": 30}
    assert client.datasets.delete("site/opinions").freed_bytes > 0


def test_requests_for_approval(client: Client) -> None:
    asked = client.catalog.request("org/needed", "model", "برای خلاصه‌سازی")
    assert (asked.status, asked.reason, asked.num_asked) == ("open", "برای خلاصه‌سازی", 1)
    again = client.catalog.request("org/needed", "model")
    assert (again.request_id, again.num_asked) == (asked.request_id, 2)
    other = client.catalog.request("org/other", "dataset")
    named = [request.id for request in client.catalog.requests(status="open", page_size=1)]
    assert named[:2] == ["org/other", "org/needed"]
    declined = client.catalog.decline(asked.request_id, "بزرگ است")
    assert (declined.status, declined.note) == ("declined", "بزرگ است")
    assert declined.decided_at is not None
    assert client.catalog.withdraw(other.request_id).id == "org/other"
    with pytest.raises(Conflict):
        client.catalog.decline(asked.request_id)
    with pytest.raises(Conflict) as approved:
        client.catalog.request(BERT, "model")
    assert approved.value.code == "ALREADY_APPROVED"


def test_the_sentences_are_in_the_clients_language(live: Living, client: Client) -> None:
    said = {}
    for language in ("fa", "en"):
        with Client(live.url, language=language) as speaking, pytest.raises(NotFound) as missing:  # type: ignore[arg-type]
            speaking.runs.status("f" * 32)
        said[language] = missing.value.message
    assert said["fa"] != said["en"]
    assert any("\u0600" <= letter <= "\u06ff" for letter in said["fa"])
    assert said["en"].isascii() or "f" * 32 in said["en"]


def test_an_upload_of_a_file_with_a_persian_name(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "نظرهای تازهٔ «می‌خواهم» 🌱.csv"
    with open(file, "w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows(
            [["متن", "برچسب"], *([f"می‌روم {n} 🌱", "خوب" if n % 2 else "بد"] for n in range(40))]
        )
    upload = client.datasets.upload(file, columns=COLUMNS)
    events = list(upload.progress())
    assert (events[-1].status, events[-1].dataset_id) == ("done", upload.dataset_id)
    assert all(event.model_extra == {} for event in events)
    dataset = upload.wait()
    assert [file_.name for file_ in dataset.files] == [file.name]
    assert dataset.name == file.stem
    assert dataset.mapping == COLUMNS
    texts = [
        row["متن"]
        for split in ("train", "validation")
        for row in client.datasets.every_row(dataset.id, split=split, page_size=7)
    ]
    assert sorted(map(str, texts)) == sorted(f"می‌روم {n} 🌱" for n in range(40))
    part = client.datasets.rows(dataset.id, split="train", offset=1, limit=2)
    assert (len(part.rows), part.split) == (2, "train")
    assert dataset.model_extra == {}
    assert client.datasets.delete(dataset.id).id == dataset.id


def test_an_upload_that_cannot_be_read_says_where(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "خراب.csv"
    file.write_text("text,label\na,b\na,b,c\n", encoding="utf-8")
    with pytest.raises(StreamFailed) as failed:
        client.datasets.upload(file).wait()
    assert failed.value.code == "BAD_ROW"
    with pytest.raises(Refused) as refused:
        client.datasets.upload(file, columns={"body": "text"})
    assert "columns.body" in str(refused.value)


def test_a_run_from_start_to_end(client: Client, trained: TrainingStatus, opinions: Dataset) -> None:
    assert (trained.status, trained.name, trained.step, trained.progress) == ("completed", RUN_NAME, 240, 100)
    assert trained.config is not None
    assert trained.config["maxSteps"] == CONFIG.max_steps
    assert trained.finished_at is not None
    assert trained.started_at is not None
    assert trained.finished_at >= trained.started_at
    assert [row.step for row in trained.history] == list(range(1, 241))
    assert trained.attempt is not None
    assert (trained.attempt.pid, trained.queue) == (None, None)
    assert trained.model_extra == {}
    with pytest.raises(Conflict) as conflict:
        client.runs.pause(trained.run_id)
    assert conflict.value.code == "INVALID_STATE"
    (snapshot,) = client.runs.stream(trained.job_id)
    assert snapshot.type == "snapshot"
    assert snapshot.snapshot is not None
    assert snapshot.snapshot.history == trained.history


def test_analysis(client: Client, trained: TrainingStatus, opinions: Dataset) -> None:
    found = list(client.analysis.jobs(status=["completed", "failed"], dataset=opinions.id, q="کارخواه"))
    assert [job.id for job in found] == [trained.id]
    assert trained.id in [job.id for job in client.runs.list(page_size=1)]
    part = client.analysis.status(trained.id, first_step=10, last_step=12)
    assert [row.step for row in part.history] == [10, 11, 12]
    curves = client.analysis.compare([trained.id, trained.job_id], "accuracy")
    assert curves.steps == [120, 240]
    assert curves.runs[0].values == curves.runs[1].values


def test_exports(client: Client, trained: TrainingStatus, tmp_path: Path) -> None:
    file = client.analysis.export(trained.id, to=tmp_path)
    assert file == tmp_path / f"{RUN_NAME}.csv"
    with open(file, encoding="utf-8", newline="") as opened:
        assert [int(row["step"]) for row in csv.DictReader(opened)] == list(range(1, 241))
    parquet = client.analysis.export(trained.id, "parquet", to=tmp_path / "گام‌ها.parquet")
    assert pq.read_table(parquet).num_rows == 240
    rows = json.loads(client.analysis.export(trained.id, "json", to=tmp_path / "steps.json").read_bytes())
    assert len(rows) == 240
    with pytest.raises(NotFound):
        client.analysis.export("f" * 32, to=tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


def test_checkpoints_are_bases_and_teachers(client: Client, trained: TrainingStatus, opinions: Dataset) -> None:
    listed = client.checkpoints.list(run_id=trained.run_id)
    best = next(asset for asset in listed if asset.best)
    assert best.id == trained.best_checkpoint
    assert best.metrics is not None
    config = CONFIG.model_copy(update={"max_steps": 4, "eval_every_steps": 4, "distillation_alpha": 0.7})
    started = client.runs.start(best, opinions.id, teacher_model=best, config=config)
    ended = client.runs.wait(started.run_id)
    assert (ended.base_model, ended.teacher_model, ended.step) == (best.id, best.id, 4)
    for asset in client.checkpoints.list(run_id=started.run_id):
        assert client.checkpoints.delete(asset.id).kind == "checkpoint"
    assert client.checkpoints.list(run_id=started.run_id) == []


def test_a_run_that_fails_and_one_that_is_refused(client: Client, opinions: Dataset) -> None:
    with pytest.raises(Refused) as refused:
        client.runs.start(BERT, [opinions], config=TrainingConfig(epochs=-1))
    assert refused.value.code == "VALIDATION_FAILED"
    assert "config.epochs" in str(refused.value)
    constant = {"text": "متن", "label": "ثابت"}
    config = CONFIG.model_copy(update={"columns": constant})
    # Whoever finds it first, the server as it starts or the program as it reads.
    with pytest.raises((StreamFailed, Refused)) as failed:
        client.runs.wait(client.runs.start(BERT, [opinions], config=config).run_id)
    assert failed.value.code == "SINGLE_CLASS"
    assert failed.value.message


def test_pause_resume_stop(client: Client, opinions: Dataset) -> None:
    long = CONFIG.model_copy(update={"max_steps": 100_000, "checkpoint_every_steps": 100_000})
    run_id = client.runs.start(BERT, [opinions], config=long).run_id
    for event in client.runs.stream(run_id):
        if event.type == "metric":
            assert client.runs.pause(run_id).status == "pausing"
            break
    for event in client.runs.stream(run_id):
        if event.status == "paused":
            break
    assert client.runs.resume(run_id).status == "queued"
    for event in client.runs.stream(run_id):
        if event.type == "metric":
            assert client.runs.stop(run_id).status == "stopping"
            break
    assert client.runs.wait(run_id).status == "stopped"


def test_events_of_everything(client: Client, trained: TrainingStatus) -> None:
    (snapshot,) = client.runs.stream(trained.run_id)
    assert snapshot.event_id is not None
    first = str(int(snapshot.event_id) - 3)
    events = client.events([f"run:{trained.run_id}", "runs"], after=first)
    assert next(events).type == "hello"
    told = next(events).run
    events.close()
    assert told is not None
    assert told.run_id


def test_threads_share_one_client(client: Client, trained: TrainingStatus) -> None:
    seen: list[int] = []

    def ask() -> None:
        for _ in range(5):
            seen.append(len(client.runs.status(trained.run_id).history))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [240] * 30


def test_a_server_killed_in_the_middle_of_a_runs_stream(live: Living, client: Client, opinions: Dataset) -> None:
    """The program is frozen meanwhile, so that the run cannot reach its end unseen."""
    run_id = client.runs.start(BERT, [opinions], config=CONFIG).run_id
    seen: list[RunEvent] = []
    reached = threading.Event()

    def watch() -> None:
        for event in client.runs.stream(run_id):
            seen.append(event)
            if (event.step or 0) >= 10:
                reached.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert reached.wait(PATIENCE_SECONDS)
    attempt = client.runs.status(run_id).attempt
    assert attempt is not None
    assert attempt.pid is not None
    os.kill(attempt.pid, signal.SIGSTOP)
    live.kill()
    live.start()
    assert watcher.is_alive()
    os.kill(attempt.pid, signal.SIGCONT)
    watcher.join(PATIENCE_SECONDS)
    assert not watcher.is_alive()
    assert (seen[-1].type, seen[-1].final, seen[-1].status) == ("state", True, "completed")
    first, *others = seen
    assert first.type == "snapshot"
    ids = [int(event.event_id or 0) for event in seen]
    assert ids == sorted(set(ids)), "each event once, in order"
    replayed = list(client.runs.stream(run_id, after=first.event_id))
    assert replayed == others, "and none left out"
    steps = [event.step for event in replayed if event.type == "metric"]
    assert steps[-1] == 240
    assert steps == list(range(241 - len(steps), 241))
    assert {name for event in others for name in event.model_extra or {}} == set()


@pytest.fixture
def slow_hub(tiny: Path) -> Iterator[str]:
    """A hub that takes some seconds for the model's weights."""
    command = [sys.executable, "-m", "kargah.hub.serve", str(tiny), "--rate-limit", "40000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_a_server_killed_in_the_middle_of_a_fetch(make_living: MakeLiving, slow_hub: str) -> None:
    living = make_living(hub_endpoint=slow_hub, token="sixteen letters and more")
    with Client(living.url, token="wrong") as stranger, pytest.raises(NotPermitted):
        stranger.catalog.models()
    with Client(living.url, "sixteen letters and more", "en", patience_seconds=PATIENCE_SECONDS) as client:
        begun = client.models.download(BERT)
        result: list[Any] = []
        fetching = threading.Thread(target=lambda: result.append(client.models.fetch(BERT)))
        fetching.start()
        for event in client.models.progress(BERT):
            assert event.model_extra == {}
            if event.bytes_downloaded > 20_000:
                break
        living.kill()
        living.start()
        fetching.join(PATIENCE_SECONDS)
        assert not fetching.is_alive()
        assert (result[0].id, result[0].status) == (BERT, "ready")
        (ending,) = client.models.progress(BERT)
        assert ending.download_id == begun.download_id
        assert ending.resumed_bytes > 0
        assert client.models.delete(BERT).freed_bytes > 0
        # And a download that is steered.
        client.models.download(PICKLED)
        assert client.models.pause(PICKLED).download_id
        for event in client.models.progress(PICKLED):
            if event.phase == "paused":
                break
        client.models.resume(PICKLED)
        client.models.cancel(PICKLED)
        with pytest.raises(StreamFailed) as cancelled:
            client.models.wait(PICKLED)
        assert cancelled.value.code == "CANCELLED"
