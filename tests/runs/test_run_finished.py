"""A run that came to its end: states, numbers, checkpoints, stream, and everything that shows them."""

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import pytest
from living import BERT, Told, told
from prepared import EVALUATED, STEPS, Finished, Prepared

from kargah.client import ApiError
from kargah.runs.schemas import Comparison, Job, JobStatus, TrainingStatus
from kargah.spec.journal import read_journal
from kargah.spec.manifest import verify_folder
from kargah.spec.run_spec import RunSpec

ROW = [
    "id", "runId", "jobId", "name", "status", "baseModel", "datasets", "teacherModel", "task", "epoch", "step",
    "totalSteps", "trainLoss", "valLoss", "accuracy", "throughput", "bestCheckpoint", "lastCheckpoint", "createdAt",
    "startedAt", "finishedAt", "progress",
]  # fmt: skip
HISTORY = ["step", "epoch", "loss", "valLoss", "accuracy", "throughput", "learningRate", "timestamp"]


def _states(events: list[Told]) -> list[str]:
    seen = [event.data["status"] for event in events if event.data["type"] in ("snapshot", "state")]
    return [state for number, state in enumerate(seen) if number == 0 or state != seen[number - 1]]


def _get(prepared: Prepared, path: str, **params: Any) -> httpx.Response:
    return httpx.get(f"{prepared.live.url}{path}", params=params, trust_env=False)


def test_states_and_types_of_its_stream(finished: Finished) -> None:
    states = _states(finished.told)
    assert states in (["queued", "preparing", "running", "completed"], ["preparing", "running", "completed"])
    types = Counter(event.data["type"] for event in finished.told)
    assert finished.told[0].data["type"] == "snapshot"
    assert (types["metric"], types["evaluation"]) == (STEPS, len(EVALUATED))
    assert types["checkpoint"] >= STEPS // 60
    assert types["log"] > 3
    ids = [int(event.id or 0) for event in finished.told]
    assert ids == sorted(set(ids))
    assert (finished.told[-1].data["type"], finished.told[-1].data["final"]) == ("state", True)
    assert all("final" not in event.data or not event.data["final"] for event in finished.told[:-1])


def test_the_journal_is_what_the_table_holds(prepared: Prepared, finished: Finished) -> None:
    journal = read_journal(prepared.folder(finished.run_id).attempt(1).journal).records
    rows = {row["step"]: row for row in prepared.export(finished.run_id)}
    metrics = [record for record in journal if record["type"] == "metric"]
    assert [record["step"] for record in metrics] == list(range(1, STEPS + 1)) == list(rows)
    for record in metrics:
        row = rows[record["step"]]
        for name in ("loss", "learningRate", "throughput", "epoch"):
            assert row[name] == record[name]
        assert row["timestamp"] >= record["at"]
    evaluations = {record["step"]: record for record in journal if record["type"] == "evaluation"}
    assert {step for step, row in rows.items() if row["valLoss"] is not None} == set(evaluations)
    for step, record in evaluations.items():
        assert (rows[step]["valLoss"], rows[step]["accuracy"]) == (record["valLoss"], record["accuracy"])
    losses = [row["loss"] for row in rows.values()]
    assert sum(losses[-20:]) < sum(losses[:20]) / 2, "a tiny model learns these sentences"


def test_its_log_is_told_in_the_language_that_is_asked_for(prepared: Prepared, finished: Finished) -> None:
    persian = re.compile("[آ-ی]")
    told = {}
    for language in ("fa", "en"):
        path, headers = f"/api/training/status/{finished.run_id}", {"Accept-Language": language}
        answer = httpx.get(f"{prepared.live.url}{path}", headers=headers, trust_env=False)
        told[language] = answer.json()["data"]["logs"]
        for name in ("timestamp", "level", "details"):
            assert [line[name] for line in told[language]] == [line[name] for line in told["fa"]]
    assert len(told["en"]) > 8
    assert [line["message"] for line in told["fa"] if not persian.search(line["message"])] == []
    assert [line["message"] for line in told["en"] if persian.search(line["message"])] == []
    for line in told["fa"]:
        outside_ids = re.sub("\u2068.*?\u2069", "", line["message"])
        assert not re.search("[0-9%.]", outside_ids), line
    # A stream tells the same lines, in Persian unless it is asked otherwise; and a journal reads in English.
    streamed = [event.data["message"] for event in finished.told if event.data["type"] == "log"]
    assert streamed == [line["message"] for line in told["fa"]][-len(streamed) :]
    journal = read_journal(prepared.folder(finished.run_id).attempt(1).journal).records
    written = [record for record in journal if record["type"] == "log"]
    assert [record["message"] for record in written] == [line["message"] for line in told["en"]]
    assert all(set(line) == {"timestamp", "level", "type", "message", "details"} for line in told["en"])


def test_the_spec_is_frozen_beside_it(prepared: Prepared, finished: Finished) -> None:
    spec = RunSpec.from_json(json.loads(prepared.folder(finished.run_id).spec.read_text(encoding="utf-8")))
    assert (spec.run_id, spec.name) == (finished.run_id, "اجرای نخست")
    assert spec.config.max_steps == STEPS
    assert spec.config.warmup_steps == 0
    assert spec.datasets[0].columns == {"text": "متن", "label": "برچسب"}
    assert len(spec.datasets[0].labels) == 2


def test_its_row_in_the_list(prepared: Prepared, finished: Finished) -> None:
    body = _get(prepared, "/api/analysis/training/jobs").json()
    row = next(row for row in body["data"] if row["id"] == finished.run_id)
    assert list(row) == ROW
    Job.model_validate(row, by_alias=True, by_name=False)
    assert (row["status"], row["progress"], row["step"], row["totalSteps"]) == ("completed", 100, STEPS, STEPS)
    assert (row["baseModel"], row["datasets"], row["teacherModel"]) == (BERT, [prepared.opinions], None)
    assert 0 <= row["accuracy"] <= 1
    assert row["createdAt"] <= row["startedAt"] <= row["finishedAt"]
    assert row["runId"] == row["id"] != row["jobId"]


def test_filters_search_and_pages_of_the_list(prepared: Prepared, finished: Finished) -> None:
    def ids(**params: Any) -> list[str]:
        answer = _get(prepared, "/api/analysis/training/jobs", **params)
        assert answer.status_code == 200, answer.text
        return [row["id"] for row in answer.json()["data"]]

    assert finished.run_id in ids(status="completed", model=BERT, dataset=prepared.opinions)
    assert finished.run_id in ids(q="اجراي نخست")
    for params in ({"status": "failed"}, {"model": "org/other"}, {"dataset": "org/other"}, {"q": "نیست"}):
        assert finished.run_id not in ids(**params)
    assert ids(status="nonsense") == []
    first = _get(prepared, "/api/analysis/training/jobs", limit=1).json()
    assert len(first["data"]) == 1
    for cursor in ("x", "W10", "WyJhIiwgImIiXQ", "WzEsIDJd", "WyIyMDI2LTAxLTAxIiwgW11d", "é"):
        answer = _get(prepared, "/api/analysis/training/jobs", cursor=cursor)
        assert (answer.status_code, answer.json()["error"]) == (400, "VALIDATION_FAILED"), cursor
    assert _get(prepared, "/api/analysis/training/jobs", limit=0).status_code == 400


def test_its_status_with_curves_and_log(prepared: Prepared, finished: Finished) -> None:
    path = f"/api/analysis/training/status/{finished.run_id}"
    data = _get(prepared, path).json()["data"]
    assert set(data) == {*ROW, "metrics", "history", "logs", "config"}
    JobStatus.model_validate(data, by_alias=True, by_name=False)
    assert data["metrics"]["accuracy"] == data["accuracy"]
    assert data["config"]["maxSteps"] == STEPS
    assert [row["step"] for row in data["history"]] == list(range(1, STEPS + 1))
    assert all(list(row) == HISTORY for row in data["history"])
    assert data["history"][0]["valLoss"] is None
    assert data["history"][EVALUATED[0] - 1]["valLoss"] is not None
    assert data["history"][0]["epoch"] == pytest.approx(1 / 4)
    for line in data["logs"]:
        assert set(line) == {"timestamp", "level", "type", "message", "details"}
        assert line["type"] == line["level"]
    part = _get(prepared, path, **{"from": 10, "to": 12}).json()["data"]["history"]
    assert [row["step"] for row in part] == [10, 11, 12]
    few = _get(prepared, path, maxPoints=10).json()["data"]["history"]
    assert len(few) <= 10
    assert max(row["loss"] for row in few) == max(row["loss"] for row in data["history"])
    for params in ({"from": -1}, {"from": 10**30}, {"maxPoints": 1}, {"maxPoints": "all"}):
        answer = _get(prepared, path, **params)
        assert (answer.status_code, answer.json()["error"]) == (400, "VALIDATION_FAILED"), params
    by_job = _get(prepared, f"/api/training/status/{data['jobId']}").json()["data"]
    assert set(by_job) == {*data, "attempt", "queue"}
    TrainingStatus.model_validate(by_job, by_alias=True, by_name=False)
    assert (by_job["attempt"]["number"], by_job["attempt"]["pid"], by_job["queue"]) == (1, None, None)


def test_comparison_aligns_runs(prepared: Prepared, finished: Finished) -> None:
    path = "/api/analysis/training/compare"
    data = _get(prepared, path, runs=f"{finished.run_id},{finished.run_id}", metric="valLoss").json()["data"]
    Comparison.model_validate(data, by_alias=True, by_name=False)
    assert (data["metric"], data["steps"]) == ("valLoss", EVALUATED)
    assert data["runs"][0]["values"] == data["runs"][1]["values"]
    assert None not in data["runs"][0]["values"]
    for params, status in (
        ({"runs": ""}, 400),
        ({"runs": finished.run_id, "metric": "lossy"}, 400),
        ({"runs": "a" * 32}, 404),
        ({"runs": ",".join(["a" * 32] * 51)}, 400),
    ):
        assert _get(prepared, path, **params).status_code == status


def test_exports_hold_every_step(prepared: Prepared, finished: Finished) -> None:
    path = f"/api/analysis/training/export/{finished.run_id}"
    rows = prepared.export(finished.run_id)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    answer = _get(prepared, path)
    assert answer.headers["content-type"].startswith("text/csv")
    assert f"filename*=UTF-8''{quote('اجرای نخست.csv')}" in answer.headers["content-disposition"]
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert list(table[0]) == [*HISTORY, "nonFinite"]
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in rows]
    assert [row["valLoss"] for row in table][:3] == ["", "", ""]
    parquet = pq.read_table(io.BytesIO(_get(prepared, path, format="parquet").content))
    assert parquet.column_names == [*HISTORY, "nonFinite"]
    assert parquet.column("loss").to_pylist() == [row["loss"] for row in rows]
    assert parquet.column("valLoss").to_pylist() == [row["valLoss"] for row in rows]
    assert _get(prepared, path, format="xlsx").status_code == 400


def test_its_checkpoints_are_assets_that_load(prepared: Prepared, finished: Finished) -> None:
    status = prepared.status(finished.run_id)
    listed = _get(prepared, "/api/training/assets", runId=status["jobId"]).json()["data"]
    assert {asset["runId"] for asset in listed} == {finished.run_id}
    by_id = {asset["id"]: asset for asset in listed}
    assert by_id[status["lastCheckpoint"]]["step"] == STEPS
    assert by_id[status["lastCheckpoint"]]["last"] is True
    best = by_id[status["bestCheckpoint"]]
    assert best["best"] is True
    assert best["metrics"]["accuracy"] == max(
        row["accuracy"] for row in prepared.export(finished.run_id) if row["accuracy"] is not None
    )
    on_disk = {path.name for path in prepared.folder(finished.run_id).checkpoints.iterdir()}
    assert on_disk == {f"step-{asset['step']:08d}" for asset in listed}
    for name in on_disk:
        verify_folder(prepared.folder(finished.run_id).checkpoints / name)
    folder = prepared.folder(finished.run_id).checkpoints / f"step-{best['step']:08d}"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("این فیلم عالی بود", "کتاب تازه خراب بود"))
    done = subprocess.run(
        [sys.executable, "-m", "kargah.compute.predict", str(folder)],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )
    labels = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert labels == ["خوش‌آیند", "ناخوش‌آیند"], done.stderr


def test_its_stream_replays_behind_any_event(prepared: Prepared, finished: Finished) -> None:
    path = prepared.stream(finished.run_id)
    for number in (0, 1, len(finished.told) // 2, len(finished.told) - 2):
        assert prepared.live.events(path, finished.told[number].id) == finished.told[number + 1 :]
    (snapshot,) = prepared.live.events(path)
    assert (snapshot.data["type"], snapshot.data["status"]) == ("snapshot", "completed")
    for seen in (finished.told[-1], snapshot):
        with prepared.live.open_stream(path, seen.id) as answer:
            assert answer.status_code == 204
    ahead = prepared.live.events(path, str(10**15))
    assert [event.data["type"] for event in ahead] == ["reset", "snapshot"]
    for odd in ("²", "9" * 40, "-5"):
        response = httpx.get(f"{prepared.live.url}{path}", headers={"Last-Event-ID": odd.encode("latin-1")})
        assert response.status_code == 200, odd
        (event,) = told(iter(response.text.split("\n")))
        assert event.data["type"] == "snapshot"


def test_all_of_it_is_in_the_stream_of_everything_too(prepared: Prepared, finished: Finished) -> None:
    first = finished.told[0].id
    topics = f"run:{finished.run_id}"
    with prepared.live.open_stream("/api/events", first, topics=topics) as answer:
        seen = []
        for event in told(answer.iter_lines()):
            seen.append(event)
            if event.data.get("final"):
                break
    assert seen[0].data["type"] == "hello"
    assert [(event.id, event.data) for event in seen[1:]] == [
        (event.id, {**event.data, "topic": "runs"}) for event in finished.told[1:]
    ]


def test_an_ended_run_takes_no_wish_and_holds_nothing(prepared: Prepared, finished: Finished) -> None:
    for verb in ("stop", "pause", "resume"):
        with pytest.raises(ApiError) as refused:
            prepared.live.client.post(f"/api/training/{verb}/{finished.run_id}")
        assert (refused.value.status, refused.value.code) == (409, "INVALID_STATE")
