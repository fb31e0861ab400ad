"""Checkpoints as people manage them: lineage, pins, deleting, pruning, and what must stay."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from test_run_states import put_run

from kargah.app.platform import Platform
from kargah.ground.errors import AssetNotReady
from kargah.ground.ids import new_id
from kargah.runs.checkpoint_kept import read_kept, release_run
from kargah.runs.models import RunRow
from kargah.runs.states import RunState
from kargah.spec.layout import RunDir, checkpoint_name, write_json
from kargah.spec.lock import exclusive
from kargah.spec.manifest import write_manifest
from kargah.spec.run_spec import DatasetRef, ModelRef, RunSpec, TrainConfig

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights " * 4000,
    "tokenizer.json": "واژه‌ها".encode(),
    "optimizer.pt": b"moments " * 9000,
    "rng_state.pth": b"chance",
}


@pytest.fixture
def quiet(platform: Platform) -> Platform:
    """A platform whose supervisor looks only when it is told to."""
    platform.supervisor.stop()
    return platform


def put_checkpoint(
    platform: Platform, run_id: str, step: int, files: dict[str, bytes] | None = None, **facts: Any
) -> str:
    """A checkpoint with files in the folder of a run. Returns its id."""
    run_dir = platform.ledger.run_dir(run_id)
    folder = run_dir.checkpoints / checkpoint_name(step)
    folder.mkdir(parents=True)
    for name, content in (files or FILES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_json(folder / "spec.json", _spec(run_id).to_json())
    metrics = {"accuracy": 0.5, "macroF1": 0.25, "valLoss": None}
    size = write_manifest(folder, step=step, epoch=step / 100, metrics=metrics, labels=["بد", "خوب"])
    checkpoint_id = new_id()
    with platform.database.write() as session:
        platform.registry.put(
            session,
            "checkpoint",
            checkpoint_id,
            name=f"اجرا · {step}",
            source="training",
            status="ready",
            size_bytes=size,
            path=str(folder.relative_to(platform.home.root)),
            run_id=run_id,
            facts={"step": step, "epoch": step / 100, "metrics": metrics, "best": False, "last": False, **facts},
        )
    return checkpoint_id


def _spec(run_id: str) -> RunSpec:
    return RunSpec(
        run_id=run_id,
        name="اجرا",
        task="text-classification",
        base_model=ModelRef("org/model", "/models/one", revision="c1"),
        datasets=[DatasetRef("org/data", "/data/one", "v1", {"text": "متن", "label": "برچسب"})],
        config=TrainConfig(learning_rate=3e-4),
        kargah_version="0.0.1",
    )


def _ids(api: TestClient) -> set[str]:
    return {row["id"] for row in api.get("/api/training/assets").json()["data"]}


def _prune(api: TestClient, **body: Any) -> dict[str, Any]:
    answer = api.post("/api/training/checkpoints/prune", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["data"])


def _kept(platform: Platform, run_id: str) -> dict[str, list[str]]:
    return read_kept(platform.ledger.run_dir(run_id))


def test_one_checkpoint_tells_where_it_comes_from(quiet: Platform, api: TestClient) -> None:
    run_id = put_run(quiet, RunState.COMPLETED, name="نخست")
    checkpoint_id = put_checkpoint(quiet, run_id, 10, best=True, attempt=2)
    restored = put_run(
        quiet, RunState.QUEUED, origin={"kind": "restore", "runId": run_id, "checkpointId": checkpoint_id}
    )
    based = put_run(quiet, RunState.QUEUED, base_model=checkpoint_id)
    taught = put_run(quiet, RunState.QUEUED, teacher_model=checkpoint_id)
    put_run(quiet, RunState.QUEUED, origin={"kind": "clone", "runId": run_id})
    with quiet.database.write() as session:
        quiet.registry.hold(session, f"run:{based}", [("checkpoint", checkpoint_id)])
    data = api.get(f"/api/training/checkpoints/{checkpoint_id}").json()["data"]
    assert (data["runId"], data["runName"], data["attempt"], data["step"], data["epoch"]) == (
        run_id,
        "نخست",
        2,
        10,
        0.1,
    )
    assert (data["best"], data["last"], data["pinned"], data["holders"]) == (True, False, False, [f"run:{based}"])
    assert data["baseModel"] == {"id": "org/model", "kind": "model", "revision": "c1"}
    assert data["teacherModel"] is None
    assert data["datasets"] == [{"id": "org/data", "version": "v1"}]
    assert (data["codeVersion"], data["labels"]) == ("0.0.1", ["بد", "خوب"])
    assert data["spec"]["config"]["learningRate"] == 3e-4
    assert "/models/one" not in json.dumps(data)
    assert {file["name"] for file in data["files"] if file["training"]} == {"optimizer.pt", "rng_state.pth"}
    assert {file["name"] for file in data["files"]} == {*FILES, "spec.json"}
    assert {(one["runId"], one["relation"]) for one in data["descendants"]} == {
        (restored, "restore"),
        (based, "base"),
        (taught, "teacher"),
    }


def test_one_whose_folder_is_gone_or_damaged(quiet: Platform, api: TestClient) -> None:
    run_id = put_run(quiet, RunState.COMPLETED)
    gone, damaged = put_checkpoint(quiet, run_id, 10), put_checkpoint(quiet, run_id, 20)
    folder = quiet.ledger.run_dir(run_id).checkpoints
    (folder / checkpoint_name(10)).rename(folder / "elsewhere")
    (folder / checkpoint_name(20) / "manifest.json").write_text("{")
    for path, code in ((gone, "CHECKPOINT_NOT_FOUND"), (damaged, "MODEL_DAMAGED"), ("f" * 32, "CHECKPOINT_NOT_FOUND")):
        for rest in ("", "/download", "/download?file=config.json"):
            assert api.get(f"/api/training/checkpoints/{path}{rest}").json()["error"] == code, (path, rest)
    # Both can be deleted all the same.
    assert api.delete(f"/api/training/checkpoints/{gone}").json()["data"]["freedBytes"] == 0
    assert api.delete(f"/api/training/checkpoints/{damaged}").json()["data"]["freedBytes"] > 0
    assert _ids(api) == set()


def test_a_pin_stands_in_the_row_and_in_the_file_that_the_program_reads(quiet: Platform, api: TestClient) -> None:
    run_id = put_run(quiet, RunState.RUNNING)
    checkpoint_id = put_checkpoint(quiet, run_id, 10)
    path = f"/api/training/checkpoints/{checkpoint_id}/pin"
    assert api.post(path, json={"pinned": True}).json()["data"]["pinned"] is True
    assert _kept(quiet, run_id) == {checkpoint_name(10): ["pinned"]}
    assert [row["pinned"] for row in api.get("/api/training/assets").json()["data"]] == [True]
    with quiet.database.write() as session:
        quiet.registry.hold(session, "endpoint:یک", [("checkpoint", checkpoint_id)])
    assert api.post(path, json={"pinned": True}).status_code == 200
    assert _kept(quiet, run_id) == {checkpoint_name(10): ["endpoint:یک", "pinned"]}
    assert api.post(path, json={"pinned": False}).json()["data"]["pinned"] is False
    assert _kept(quiet, run_id) == {checkpoint_name(10): ["endpoint:یک"]}
    assert api.post("/api/training/checkpoints/" + "f" * 32 + "/pin", json={"pinned": True}).status_code == 404


def test_a_pin_waits_for_a_program_that_prunes_and_then_finds_nothing(quiet: Platform, api: TestClient) -> None:
    run_id = put_run(quiet, RunState.RUNNING)
    checkpoint_id = put_checkpoint(quiet, run_id, 10)
    run_dir = quiet.ledger.run_dir(run_id)
    answers: list[Any] = []
    path = f"/api/training/checkpoints/{checkpoint_id}/pin"
    asking = threading.Thread(target=lambda: answers.append(api.post(path, json={"pinned": True})))
    with exclusive(run_dir.checkpoints_lock):
        asking.start()
        (run_dir.checkpoints / checkpoint_name(10)).rename(run_dir.checkpoints / ".step-00000010.removed.partial")
        assert not answers
    asking.join(30)
    assert (answers[0].status_code, answers[0].json()["error"]) == (404, "CHECKPOINT_NOT_FOUND")
    assert _kept(quiet, run_id) == {}
    with quiet.database.read() as session:
        assert not quiet.checkpoints.get(session, checkpoint_id).facts.get("pinned")


def test_a_run_that_starts_from_a_checkpoint_keeps_it_until_it_ends(quiet: Platform) -> None:
    run_id = put_run(quiet, RunState.RUNNING)
    checkpoint_id = put_checkpoint(quiet, run_id, 10)
    spec = RunSpec(
        new_id(),
        "تازه",
        "text-classification",
        ModelRef(checkpoint_id, "/x", "checkpoint"),
        _spec(run_id).datasets,
        TrainConfig(),
    )
    row = quiet.runs.enqueue(spec, [("checkpoint", checkpoint_id)], {"kind": "clone", "runId": run_id})
    assert _kept(quiet, run_id) == {checkpoint_name(10): [f"run:{row.id}"]}
    assert quiet.ledger.run_dir(row.id).spec.is_file()
    with quiet.database.read() as session:
        assert session.get_one(RunRow, row.id).origin == {"kind": "clone", "runId": run_id}
    with quiet.database.write() as session:
        release_run(session, quiet.registry, quiet.ledger, row.id)
    assert _kept(quiet, run_id) == {}


def test_a_run_does_not_start_from_what_was_pruned_a_moment_ago(quiet: Platform) -> None:
    run_id = put_run(quiet, RunState.RUNNING)
    checkpoint_id = put_checkpoint(quiet, run_id, 10)
    folder = quiet.ledger.run_dir(run_id).checkpoints
    (folder / checkpoint_name(10)).rename(folder / "gone")
    spec = RunSpec(
        new_id(),
        "تازه",
        "text-classification",
        ModelRef(checkpoint_id, "/x", "checkpoint"),
        _spec(run_id).datasets,
        TrainConfig(),
    )
    with pytest.raises(AssetNotReady):
        quiet.runs.enqueue(spec, [("checkpoint", checkpoint_id)])
    assert not quiet.ledger.run_dir(spec.run_id).root.exists()
    with quiet.database.read() as session:
        assert session.get(RunRow, spec.run_id) is None
        assert quiet.registry.holders(session, "checkpoint", checkpoint_id) == []


@pytest.mark.parametrize("path", ["/api/training/checkpoints/{}", "/api/assets/{}?kind=checkpoint"])
def test_what_is_needed_is_not_deleted_and_it_is_said_what_would_break(
    quiet: Platform, api: TestClient, path: str
) -> None:
    ended, going = put_run(quiet, RunState.STOPPED), put_run(quiet, RunState.PAUSED)
    returning = put_run(quiet, RunState.PAUSED, spec={"config": {"enableEarlyStopping": True}})
    free, pinned = put_checkpoint(quiet, ended, 10), put_checkpoint(quiet, ended, 20, pinned=True)
    held = put_checkpoint(quiet, ended, 30)
    with quiet.database.write() as session:
        quiet.registry.hold(session, "endpoint:a", [("checkpoint", held)])
    older, newest = put_checkpoint(quiet, going, 10, best=True), put_checkpoint(quiet, going, 20)
    best, last = put_checkpoint(quiet, returning, 10, best=True), put_checkpoint(quiet, returning, 20)
    wanted = {
        pinned: ("pinned", "pinned"),
        held: ("endpoint:a", "endpoint"),
        newest: (f"run:{going}", "unfinishedRun"),
        best: (f"run:{returning}", "unfinishedRun"),
        last: (f"run:{returning}", "unfinishedRun"),
    }
    for checkpoint_id, (holder, kind) in wanted.items():
        answer = api.delete(path.format(checkpoint_id))
        assert (answer.status_code, answer.json()["error"]) == (409, "IN_USE"), checkpoint_id
        details = answer.json()["details"]
        assert details["holders"] == [holder]
        if "assets" not in path or kind != "endpoint":
            assert [one["kind"] for one in details["breaks"]] == [kind]
    with quiet.database.read() as session:
        size = quiet.checkpoints.get(session, free).size_bytes
    folder = quiet.ledger.run_dir(ended).checkpoints
    manifest_bytes = (folder / checkpoint_name(10) / "manifest.json").stat().st_size
    assert api.delete(path.format(free)).json()["data"] == {
        "id": free,
        "kind": "checkpoint",
        "freedBytes": (size or 0) + manifest_bytes,
    }
    assert api.delete(path.format(older)).status_code == 200
    assert _ids(api) == set(wanted)
    assert sorted(entry.name for entry in folder.iterdir()) == [checkpoint_name(20), checkpoint_name(30)]
    assert api.delete(path.format(free)).status_code == 404


def test_a_deletion_that_cannot_be_committed_brings_the_folder_back(
    quiet: Platform, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = put_run(quiet, RunState.COMPLETED)
    checkpoint_id = put_checkpoint(quiet, run_id, 10)
    folder = quiet.ledger.run_dir(run_id).checkpoints / checkpoint_name(10)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(quiet.events, "append", refuse)
    assert api.delete(f"/api/training/checkpoints/{checkpoint_id}").status_code == 500
    assert (folder / "model.safetensors").is_file()
    monkeypatch.undo()
    assert checkpoint_id in _ids(api)
    assert api.delete(f"/api/training/checkpoints/{checkpoint_id}").status_code == 200
    assert not folder.exists()


def _many(platform: Platform) -> dict[str, str]:
    """Two ended runs and one that goes on, with checkpoints of every sort, by a name for each."""
    first, second = put_run(platform, RunState.COMPLETED), put_run(platform, RunState.FAILED)
    going = put_run(platform, RunState.RUNNING)
    made = {
        "first-10": put_checkpoint(platform, first, 10),
        "first-20-best": put_checkpoint(platform, first, 20, best=True),
        "first-30-pinned": put_checkpoint(platform, first, 30, pinned=True),
        "first-40": put_checkpoint(platform, first, 40),
        "first-50": put_checkpoint(platform, first, 50, last=True),
        "second-10-held": put_checkpoint(platform, second, 10),
        "second-20": put_checkpoint(platform, second, 20),
        "going-10": put_checkpoint(platform, going, 10),
        "going-20": put_checkpoint(platform, going, 20),
    }
    with platform.database.write() as session:
        platform.registry.hold(session, "run:x", [("checkpoint", made["second-10-held"])])
    return made


@pytest.mark.parametrize(
    ("policy", "goes"),
    [
        ({"keepLast": 1}, {"first-10", "first-40", "going-10"}),
        ({"keepLast": 2}, {"first-10"}),
        ({"keepLast": 9}, set()),
        ({"keepLast": 0}, {"first-10", "first-40", "first-50", "second-20", "going-10"}),
        (
            {"keepLast": 0, "keepBest": False},
            {"first-10", "first-20-best", "first-40", "first-50", "second-20", "going-10"},
        ),
    ],
)
def test_pruning_keeps_what_it_must_and_the_dry_run_tells_the_same(
    quiet: Platform, api: TestClient, policy: dict[str, Any], goes: set[str]
) -> None:
    made = _many(quiet)
    # Two of them share a file: only when both are gone does the disk get it back.
    shared = [quiet.ledger.run_dir(_run_of(quiet, made[name])).checkpoints for name in ("first-10", "going-10")]
    twin = shared[1] / checkpoint_name(10) / "config.json"
    twin.unlink()
    os.link(shared[0] / checkpoint_name(10) / "config.json", twin)
    before = _disk(quiet)
    told = _prune(api, dryRun=True, **policy)
    assert _disk(quiet) == before
    assert {row["checkpointId"] for row in told["removed"]} == {made[name] for name in goes}
    assert told["kept"] == len(made) - len(goes)
    done = _prune(api, **policy)
    assert done == told
    assert _ids(api) == {made[name] for name in made if name not in goes}
    assert before - _disk(quiet) == done["freedBytes"]
    assert _prune(api, **policy) == {"removed": [], "kept": len(made) - len(goes), "freedBytes": 0}


def test_pruning_one_run_by_its_jobs_id(quiet: Platform, api: TestClient) -> None:
    made = _many(quiet)
    run_id = _run_of(quiet, made["first-10"])
    with quiet.database.read() as session:
        job_id = session.get_one(RunRow, run_id).job_id
    done = _prune(api, runId=job_id, keepLast=1)
    assert [(row["runId"], row["step"]) for row in done["removed"]] == [(run_id, 40), (run_id, 10)]
    assert done["kept"] == 3
    refused = api.post("/api/training/checkpoints/prune", json={"runId": "f" * 32, "keepLast": 1})
    assert refused.json()["error"] == "RUN_NOT_FOUND"
    # What is to stay must be said.
    assert api.post("/api/training/checkpoints/prune", json={}).status_code == 400


def test_one_that_cannot_be_removed_does_not_stop_the_others(
    quiet: Platform, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = put_run(quiet, RunState.COMPLETED)
    made = [put_checkpoint(quiet, run_id, step) for step in (10, 20, 30)]
    rename = os.rename

    def stubborn(source: Path, target: Path) -> None:
        if Path(source).name == checkpoint_name(20):
            raise PermissionError(13, "not permitted")
        rename(source, target)

    monkeypatch.setattr(os, "rename", stubborn)
    done = _prune(api, keepLast=0)
    assert {row["checkpointId"] for row in done["removed"]} == {made[0], made[2]}
    assert done["kept"] == 1
    assert _ids(api) == {made[1]}
    monkeypatch.undo()
    assert [row["step"] for row in _prune(api, keepLast=0)["removed"]] == [20]


def test_what_a_crash_left_of_a_deletion_goes_with_the_next(quiet: Platform, api: TestClient) -> None:
    run_id = put_run(quiet, RunState.COMPLETED)
    checkpoint_id = put_checkpoint(quiet, run_id, 10)
    left = quiet.ledger.run_dir(run_id).checkpoints / ".step-00000010.deleted.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"old")
    assert api.delete(f"/api/training/checkpoints/{checkpoint_id}").status_code == 200
    assert list(RunDir(quiet.home.runs / run_id).checkpoints.iterdir()) == []


def _run_of(platform: Platform, checkpoint_id: str) -> str:
    with platform.database.read() as session:
        return str(platform.checkpoints.get(session, checkpoint_id).run_id)


def _disk(platform: Platform) -> int:
    seen = {}
    for path in platform.home.runs.rglob("*"):
        if path.is_file():
            seen[path.stat().st_ino] = path.stat().st_size
    return sum(seen.values())
