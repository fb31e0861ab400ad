"""The scenes of the demo: a download that is killed and resumed, a run that loses its server, proofs from disk."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn

from kargah.app.demo.stage import MODEL_ID, DemoFailed, Stage
from kargah.spec.journal import read_journal
from kargah.spec.layout import RunDir, checkpoint_name

DATASET_ID = "kargah/support-fa"
STUDENT_ID = "kargah/mini-fa"
KILL_DOWNLOAD_AT_PERCENT = 40
KILL_SERVER_AT_PERCENT = 40


def download_with_a_kill(stage: Stage, console: Console, say: Any) -> dict[str, Any]:
    """Download the model through Kargah; the server is killed in the middle. Returns the stream's last event."""
    stage.client.post("/api/models/download/start", {"modelId": MODEL_ID})
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    killed = False
    last: dict[str, Any] = {}
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(say("phase.queued"), total=None)
        for last in stage.client.stream("/api/models/download/progress", modelId=MODEL_ID):
            phase = say(f"phase.{last['phase']}")
            bar.update(task, description=phase, completed=last["bytesDownloaded"], total=last["totalBytes"])
            if not killed and last["status"] == "downloading" and last["progress"] >= KILL_DOWNLOAD_AT_PERCENT:
                killed = True
                stage.kill_server()
                bar.console.print(say("demo.killedDownload", percent=last["progress"]))
                stage.start_server()
    if last.get("status") != "done":
        raise DemoFailed(f"the download ended as {last.get('status')}: {last.get('error')}")
    if not killed or last["resumedBytes"] == 0:
        raise DemoFailed("the download was over before it could be killed")
    return last


def train(
    stage: Stage,
    console: Console,
    say: Any,
    *,
    name: str,
    base: str,
    config: dict[str, Any],
    teacher: str | None = None,
    kill: bool = False,
) -> dict[str, Any]:
    """Run one training with a live bar; with `kill`, the server dies in the middle. Returns the run's status."""
    body: dict[str, Any] = {"baseModel": base, "datasets": [DATASET_ID], "name": name, "config": config}
    if teacher is not None:
        body["teacherModel"] = teacher
    run_id = stage.client.post("/api/training/start", body)["runId"]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    shown: dict[str, float] = {}
    total: int | None = None
    pid: int | None = None
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(say("status.queued"), total=None, figures="")
        for event in stage.client.stream(f"/api/training/stream/{run_id}"):
            if event["type"] in ("metric", "evaluation"):
                shown |= {key: event[key] for key in ("loss", "valLoss", "accuracy") if event.get(key) is not None}
                if total is None:
                    total = stage.client.get(f"/api/analysis/training/status/{run_id}", maxPoints=2)["totalSteps"]
                figures = "  ".join(f"{say('demo.' + key)} {value:.3f}" for key, value in shown.items())
                bar.update(task, total=total, completed=event["step"], figures=figures)
                if kill and total and pid is None and event["step"] * 100 >= total * KILL_SERVER_AT_PERCENT:
                    pid = stage.client.get(f"/api/training/status/{run_id}")["attempt"]["pid"]
                    stage.kill_server()
                    bar.console.print(say("demo.killedServer", step=event["step"]))
                    stage.start_server()
                    bar.console.print(say("demo.attached", pid=str(pid)))
            elif event.get("status"):
                bar.update(task, description=say(f"status.{event['status']}"))
    status: dict[str, Any] = stage.client.get(f"/api/training/status/{run_id}", maxPoints=100_000)
    if status["status"] != "completed":
        raise DemoFailed(f"the run {name} ended as {status['status']}: {status.get('message')}; see {stage.log}")
    if kill and pid is None:
        raise DemoFailed("the run was over before the server could be killed")
    return status


def prove_nothing_lost(stage: Stage, status: dict[str, Any]) -> int:
    """Hold the database, read as a file, against the journal: every logged step once. Returns how many there are."""
    run_dir = RunDir(stage.home / "runs" / status["runId"])
    numbers = run_dir.attempt_numbers()
    if numbers != [1]:
        raise DemoFailed(f"the run needed {len(numbers)} attempts: its program did not outlive the server")
    records = read_journal(run_dir.attempt(1).journal, limit_bytes=1 << 30).records
    logged = {r["step"]: r["loss"] for r in records if r["type"] == "metric"}
    with sqlite3.connect(f"file:{stage.home / 'kargah.db'}?mode=ro", uri=True) as database:
        query = "SELECT step, loss FROM training_metrics WHERE run_id = ? AND loss IS NOT NULL ORDER BY step"
        rows = database.execute(query, (status["runId"],)).fetchall()
    if dict(rows) != logged or len(rows) != len(logged):
        raise DemoFailed(f"{len(logged)} steps in the journal, {len(rows)} in the database")
    return len(rows)


def checkpoint_folder(stage: Stage, status: dict[str, Any]) -> Path:
    """The folder of a run's best checkpoint."""
    for asset in stage.client.get("/api/training/assets", runId=status["runId"]):
        if asset["id"] == status["bestCheckpoint"]:
            return RunDir(stage.home / "runs" / status["runId"]).checkpoints / checkpoint_name(asset["step"])
    raise DemoFailed(f"the run {status['name']} has no best checkpoint")


def dataset_folder(stage: Stage) -> tuple[Path, str]:
    """The folder of the data set and its mapping as JSON."""
    described = stage.client.get(f"/api/datasets/{DATASET_ID}")
    [folder] = (stage.home / "datasets").glob(f"*/{described['version']}")
    return folder, json.dumps(described["mapping"], ensure_ascii=False)
