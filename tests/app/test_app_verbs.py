"""The verbs of `kargah` that look at what is held and what runs, by child processes against a real server."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from living import BERT, PATIENCE_SECONDS, Living, MakeLiving

CONFIG = ("maxSteps=12", "batchSize=8", "logEverySteps=4", "maxLength=24", "optimizer=adamw", "checkpointEverySteps=6")
ENDLESS = {"maxSteps": 100_000, "batchSize": 2, "logEverySteps": 1, "maxLength": 8, "evalEverySteps": 50}


@pytest.fixture(scope="module")
def held(live: Living, tiny: Path) -> str:
    """A server with a model and a data set. The data set's id."""
    live.fetch(BERT)
    return live.upload(tiny / "opinions", "نظرهای فعل‌ها")


@pytest.fixture(scope="module")
def run(live: Living, held: str) -> dict[str, Any]:
    """A run that was trained to its end."""
    sets = [part for pair in CONFIG for part in ("--set", pair)]
    done = live.run("train", "--base", BERT, "--dataset", held, "--name", "اجرای آزمون", *sets, "--json")
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = json.loads(done.stdout)
    return row


@pytest.fixture
def endless(live: Living, held: str) -> Iterator[str]:
    """A run that goes on until the test is over."""
    body = {"baseModel": BERT, "datasets": [held], "name": "بی‌پایان", "config": ENDLESS}
    run_id: str = live.client.post("/api/training/start", body)["runId"]
    yield run_id
    live.client.post(f"/api/training/stop/{run_id}")
    live.events(f"/api/training/stream/{run_id}")


def _listed(live: Living, *arguments: str) -> list[dict[str, Any]]:
    done = live.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def _begin(living: Living, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "kargah.app.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**living.environment, "KARGAH_LANG": "en", **environment},
    )


def _until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_status_is_one_screen_or_one_run(live: Living, run: dict[str, Any], endless: str) -> None:
    said = json.loads(live.run("status", "--json").stdout)
    assert said["server"]["url"] == live.url
    assert said["assets"]["byKind"]["model"] >= 1
    assert [row["runId"] for row in said["runs"]] == [endless]
    assert endless in live.run("status").stdout
    assert "در" in live.run("status", lang="fa").stdout
    by_prefix = json.loads(live.run("status", run["jobId"][:8].upper(), "--json").stdout)
    assert by_prefix["runId"] == run["runId"]
    told = live.run("status", run["runId"][:8]).stdout
    assert run["runId"] in told
    assert "اجرای آزمون" in told


def test_a_beginning_that_several_runs_share_is_said(live: Living, run: dict[str, Any], endless: str) -> None:
    assert json.loads(live.run("runs", "show", run["runId"][:12], "--json").stdout)["runId"] == run["runId"]
    assert live.run("runs", "show", run["runId"][:3]).returncode == 3
    assert live.run("runs", "show", "0" * 31).returncode == 3
    with _job_id(live, run, endless[:8] + run["jobId"][8:]):
        refused = live.run("status", endless[:8])
        assert refused.returncode == 2
        assert run["runId"] in refused.stderr
        assert endless in refused.stderr
        assert live.run("status", endless).returncode == 0


@contextmanager
def _job_id(live: Living, run: dict[str, Any], job_id: str) -> Iterator[None]:
    """Two ids that begin alike are a matter of luck, which is helped here."""
    for value in (job_id, run["jobId"]):
        with closing(sqlite3.connect(live.home / "kargah.db", timeout=PATIENCE_SECONDS)) as database:
            database.execute("UPDATE runs SET job_id = ? WHERE id = ?", (value, run["runId"]))
            database.commit()
        if value == job_id:
            yield


def test_runs_are_limited_and_listed_whole_in_a_pipe(live: Living, run: dict[str, Any], endless: str) -> None:
    assert len(_listed(live, "runs")) >= 2
    assert [row["runId"] for row in _listed(live, "runs", "--limit", "1")] == [endless]
    assert [row["runId"] for row in _listed(live, "runs", "list")] == [row["runId"] for row in _listed(live, "runs")]
    narrow = live.run("runs", COLUMNS="40").stdout.splitlines()
    (line,) = [line for line in narrow if line.startswith(run["runId"])]
    assert "اجرای آزمون" in line
    assert line.endswith(run["createdAt"][:10])


def test_logs_are_the_last_lines_of_a_level(live: Living, run: dict[str, Any]) -> None:
    every = _listed(live, "logs", run["runId"], "-n", "500")
    assert len(every) > 4
    assert _listed(live, "logs", run["runId"], "-n", "3") == every[-3:]
    assert _listed(live, "logs", run["runId"], "-n", "0") == []
    graver = _listed(live, "logs", run["runId"], "--level", "warning")
    assert graver == [line for line in every if line["level"] != "info"][-50:]
    plain = live.run("logs", run["runId"], "-n", "2").stdout.splitlines()
    assert [line.endswith(one["message"]) for line, one in zip(plain, every[-2:], strict=True)] == [True, True]
    followed = live.run("logs", run["runId"], "-f", "-n", "3", "--json").stdout.splitlines()
    assert [json.loads(line) for line in followed] == every[-3:]


def test_followed_logs_lose_and_double_nothing_when_the_server_is_killed(
    make_living: MakeLiving, tiny: Path, model_hub: str
) -> None:
    living = make_living("killed", hub_endpoint=model_hub)
    living.fetch(BERT)
    dataset = living.upload(tiny / "opinions", "نظرها")
    config = {**ENDLESS, "maxSteps": 400, "evalEverySteps": 10, "checkpointEverySteps": 10}
    body = {"baseModel": BERT, "datasets": [dataset], "config": config}
    run_id = living.client.post("/api/training/start", body)["runId"]
    following = _begin(living, "logs", run_id, "-f", "-n", "500", "--json")
    assert following.stdout is not None
    heard = [following.stdout.readline() for _ in range(8)]
    living.kill()
    living.start()
    heard += [following.stdout.readline() for _ in range(8)]
    living.terminate()
    living.start()
    lines = [json.loads(line) for line in [*heard, *following.stdout]]
    assert following.wait(PATIENCE_SECONDS) == 0
    stored = living.client.get(f"/api/training/status/{run_id}")
    assert stored["status"] == "completed"
    assert [(line["timestamp"], line["message"]) for line in lines] == [
        (line["timestamp"], line["message"]) for line in stored["logs"]
    ]


def test_ctrl_c_ends_watching_and_the_run_goes_on(live: Living, endless: str) -> None:
    following = _begin(live, "logs", endless, "-f")
    assert following.stdout is not None
    assert following.stdout.readline()
    following.send_signal(signal.SIGINT)
    _, complaints = following.communicate(timeout=PATIENCE_SECONDS)
    assert following.returncode == 130
    assert "goes on" in complaints
    assert "Traceback" not in complaints
    assert live.client.get(f"/api/training/status/{endless}")["status"] in ("queued", "preparing", "running")


def test_assets_are_listed_shown_and_deleted_after_a_word(live: Living, held: str, tiny: Path) -> None:
    assert {asset["kind"] for asset in _listed(live, "assets", "--kind", "model")} == {"model"}
    assert BERT in [asset["id"] for asset in _listed(live, "assets", "-q", "bert-fa")]
    assert json.loads(live.run("assets", "show", BERT, "--json").stdout)["kind"] == "model"
    assert BERT in live.run("assets", "show", BERT, lang="fa").stdout
    assert "[ASSET_NOT_FOUND]" in live.run("assets", "show", "nobody/nothing").stderr
    assert live.run("assets", "show", "nobody/nothing").returncode == 3
    assert live.run("assets", "--kind", "song").returncode == 2

    spare = live.upload(tiny / "opinions", "زیادی")
    refused = live.run("assets", "delete", spare)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert spare in [asset["id"] for asset in _listed(live, "data")]
    freed = json.loads(live.run("assets", "delete", spare[:10], "--yes", "--json").stdout)
    assert freed["id"] == spare
    assert freed["freedBytes"] > 0
    assert spare not in [asset["id"] for asset in _listed(live, "data")]


def test_checkpoints_are_listed_by_run_shown_and_deleted(live: Living, run: dict[str, Any]) -> None:
    of_run = _listed(live, "checkpoints", run["runId"][:8])
    assert [(one["runId"], one["step"]) for one in of_run] == [(run["runId"], 12), (run["runId"], 6)]
    assert {one["id"] for one in of_run} <= {one["id"] for one in _listed(live, "checkpoints")}
    table = live.run("checkpoints", run["runId"]).stdout
    assert all(one["id"] in table for one in of_run)
    assert "best" in table
    shown = live.run("checkpoints", "show", of_run[0]["id"]).stdout
    assert run["runId"] in shown
    assert "accuracy" in shown
    older = of_run[1]["id"]
    assert live.run("checkpoints", "delete", older, "--yes").returncode == 0
    assert [one["id"] for one in _listed(live, "checkpoints", run["runId"])] == [of_run[0]["id"]]
    assert live.run("checkpoints", "delete", BERT, "--yes").returncode == 3


def test_data_is_uploaded_looked_at_and_deleted(live: Living, tmp_path: Path) -> None:
    words = ("خوب", "بد", "می‌خواهم", "نمی‌خواهم")
    files = {name: tmp_path / f"{name} ‌ها.csv" for name in ("train", "validation")}
    for file in files.values():
        file.write_text("متن,برچسب\n" + "".join(f"{word} {i},{word}\n" for word in words for i in range(5)))
    options = ("--column", "text=متن", "--column", "label=برچسب", "--task", "text-classification")
    arguments = ("--train", str(files["train"]), "--validation", str(files["validation"]), *options)
    done = live.run("data", "upload", "--name", "با فرمان‌ها", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    dataset = json.loads(done.stdout)["datasetId"]
    shown = json.loads(live.run("data", "show", dataset[:9], "--json").stdout)
    assert (shown["name"], shown["mapping"]) == ("با فرمان‌ها", {"text": "متن", "label": "برچسب"})
    assert {split["name"]: split["numRows"] for split in shown["splits"]} == {"train": 20, "validation": 20}
    assert "می‌خواهم" in live.run("data", "show", dataset).stdout
    part = json.loads(live.run("data", "rows", dataset, "-q", "نمی‌خواهم", "--limit", "3", "--json").stdout)
    assert (len(part["rows"]), part["total"]) == (3, 5)
    rows = live.run("data", "rows", dataset, "--split", "validation", "--offset", "19").stdout.splitlines()
    assert [line.split() for line in rows] == [["متن", "برچسب"], ["نمی‌خواهم", "4", "نمی‌خواهم"]]
    assert live.run("data", "delete", dataset, "--yes").returncode == 0
    assert live.run("data", "show", dataset).returncode == 3


def test_an_upload_that_cannot_be_is_refused_before_or_by_the_server(live: Living, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1,2,3\n")
    assert live.run("data", "upload", "--name", "x").returncode == 2
    assert live.run("data", "upload", str(tmp_path), "--name", "x").returncode == 2
    assert live.run("data", "upload", str(tmp_path / "no.csv"), "--name", "x").returncode == 2
    assert live.run("data", "upload", str(file), "--name", "x", "--column", "text").returncode == 2
    bad = live.run("data", "upload", str(file), "--name", "x")
    assert bad.returncode == 1
    assert "[BAD_ROW]" in bad.stderr
    unknown = live.run("data", "upload", str(file), "--name", "x", "--task", "singing")
    assert unknown.returncode == 3
    assert "[VALIDATION_FAILED]" in unknown.stderr


def test_ctrl_c_takes_an_upload_back(make_living: MakeLiving, tmp_path: Path) -> None:
    living = make_living("uploading")
    before = [one["id"] for one in living.client.get("/api/datasets")]
    file = tmp_path / "big.csv"
    with open(file, "wb") as rows:
        rows.write(b"text,label\n" + b"a long row of words,yes\n" * 4_000_000)
    assert living.process is not None
    # A server that does not read: the upload can only be under way, never over.
    living.process.send_signal(signal.SIGSTOP)
    try:
        uploading = _begin(living, "data", "upload", str(file), "--name", "big")
        process = psutil.Process(uploading.pid)
        _until(lambda: any(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections()))
        uploading.send_signal(signal.SIGINT)
        said, complaints = uploading.communicate(timeout=PATIENCE_SECONDS)
    finally:
        living.process.send_signal(signal.SIGCONT)
    assert uploading.returncode == 130, complaints
    assert "cancelled" in complaints
    assert said == ""
    assert [one["id"] for one in living.client.get("/api/datasets")] == before
    _until(lambda: list((living.home / "uploads").iterdir()) == [])


def test_ctrl_c_pauses_a_run_without_a_server_and_the_same_command_goes_on(
    live: Living, run: dict[str, Any], tmp_path: Path
) -> None:
    spec = json.loads((live.home / "runs" / run["runId"] / "spec.json").read_text(encoding="utf-8"))
    spec["config"] |= {"maxSteps": 100_000, "checkpointEverySteps": None}
    (tmp_path / "spec.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    command = ("train", str(tmp_path / "spec.json"), "--run-dir", str(tmp_path / "run"))
    for number, sent, code in ((1, signal.SIGINT, 130), (2, signal.SIGTERM, 143)):
        training = _begin(live, *command)
        attempt = tmp_path / "run" / "attempts" / str(number)
        journal = attempt / "journal.jsonl"
        _until(lambda journal=journal: journal.exists() and '"metric"' in journal.read_text(encoding="utf-8"))
        training.send_signal(sent)
        _, complaints = training.communicate(timeout=PATIENCE_SECONDS)
        assert training.returncode == code, complaints
        assert "Traceback" not in complaints
        assert json.loads((attempt / "exit.json").read_text(encoding="utf-8"))["outcome"] == "paused"
    records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    assert next(record["startStep"] for record in records if record["type"] == "started") > 0


def test_nested_values_reach_the_run(live: Living, held: str) -> None:
    sets = ("columns.text=متن", "columns.label=برچسب", "epochs=۲", "learningRate=۰٫۰۰۱", "batchSize=8")
    arguments = [part for pair in sets for part in ("--set", pair)]
    done = live.run("train", "--base", BERT, "--dataset", held, *arguments, "--detach", "--json")
    assert done.returncode == 0, done.stderr
    run_id = json.loads(done.stdout)["runId"]
    config = live.client.get(f"/api/training/status/{run_id}")["config"]
    assert (config["epochs"], config["learningRate"]) == (2, 0.001)
    live.run("runs", "stop", run_id)
    wrong = live.run("train", "--base", BERT, "--dataset", held, "--set", "columns.song=7", "--set", "lora.rank=0")
    assert wrong.returncode == 3
    assert "config.lora.rank" in wrong.stderr
    for pairs in (("lora.rank",), ("=3",), ("lora..rank=3",), ("epochs=3", "epochs.many=3"), ("a.b=1", "a=2")):
        arguments = [part for pair in pairs for part in ("--set", pair)]
        assert live.run("train", "--base", BERT, "--dataset", held, *arguments).returncode == 2
    infinite = live.run("train", "--base", BERT, "--dataset", held, "--set", "learningRate=NaN")
    assert "[VALIDATION_FAILED]" in infinite.stderr


def test_explain_gives_cause_and_cure(live: Living) -> None:
    codes = _listed(live, "explain")
    assert "DISK_FULL" in codes
    said = json.loads(live.run("explain", "disk-full", "--json", lang="fa").stdout)
    assert said["code"] == "DISK_FULL"
    assert said["cause"] in live.run("explain", "[DISK_FULL]", lang="fa").stdout
    assert live.run("explain", "DISK_FULL").stdout != live.run("explain", "DISK_FULL", lang="fa").stdout
    unknown = live.run("explain", "DISK_FUL")
    assert unknown.returncode == 2
    assert "DISK_FULL" in unknown.stderr
