"""New runs out of old ones: what a restored run needs, and what a clone takes over."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from living import BERT
from starlette.testclient import TestClient
from test_run_checkpoints import put_checkpoint
from test_run_states import put_run

from kargah.app.platform import Platform
from kargah.runs.checkpoint_schemas import CloneBody
from kargah.runs.cloning import cloned_body
from kargah.runs.models import RunRow
from kargah.runs.states import RunState
from kargah.spec.layout import checkpoint_name, write_json
from kargah.spec.manifest import write_manifest
from kargah.spec.run_spec import LoraConfig, ModelRef, RunSpec, TrainConfig

ROWS = [("خوب بود", "خوب"), ("بد بود", "بد"), ("عالی", "خوب"), ("نپسندیدم", "بد")] * 5


@pytest.fixture
def planned(platform: Platform, api: TestClient, hold_model: Any, upload: Callable[..., str]) -> str:
    """A run that was planned for real and has ended, with one checkpoint. Its id."""
    platform.supervisor.stop()
    hold_model()
    dataset_id = upload(ROWS)
    config = {"maxSteps": 4, "batchSize": 2, "maxLength": 16}
    body = {"baseModel": BERT, "datasets": [dataset_id], "name": "نخست", "config": config}
    answer = api.post("/api/training/start", json=body)
    assert answer.status_code == 200, answer.text
    run_id = str(answer.json()["data"]["runId"])
    assert api.post(f"/api/training/stop/{run_id}").json()["data"]["status"] == "stopped"
    return run_id


def _checkpoint(platform: Platform, run_id: str) -> str:
    """A checkpoint with the run's own spec."""
    checkpoint_id = put_checkpoint(platform, run_id, 2)
    folder = platform.ledger.run_dir(run_id).checkpoints / checkpoint_name(2)
    write_json(folder / "spec.json", _run(platform, run_id).spec)
    write_manifest(folder, step=2, epoch=0.2)
    return checkpoint_id


def _run(platform: Platform, run_id: str) -> RunRow:
    with platform.database.read() as session:
        return session.get_one(RunRow, run_id)


def _restore(api: TestClient, checkpoint_id: str, **request: Any) -> Any:
    return api.post(f"/api/training/checkpoints/{checkpoint_id}/restore", **request)


def test_a_restored_run_has_the_spec_of_the_first(platform: Platform, api: TestClient, planned: str) -> None:
    checkpoint_id = _checkpoint(platform, planned)
    for request, name in (({}, "اجرا · 2"), ({"json": {}}, "اجرا · 2"), ({"json": {"name": "تازه"}}, "تازه")):
        answer = _restore(api, checkpoint_id, **request)
        assert answer.status_code == 200, answer.text
        data = answer.json()["data"]
        assert data["status"] == "queued"
        row, first = _run(platform, data["runId"]), _run(platform, planned)
        assert (row.job_id, row.name) == (data["jobId"], name)
        assert row.origin == {"kind": "restore", "runId": planned, "checkpointId": checkpoint_id}
        own = ("runId", "name", "resumeFrom", "createdAt")
        assert {k: v for k, v in row.spec.items() if k not in own} == {
            k: v for k, v in first.spec.items() if k not in own
        }
        assert Path(row.spec["resumeFrom"]) == platform.ledger.run_dir(planned).checkpoints / checkpoint_name(2)
        with platform.database.read() as session:
            for kind, asset_id in (("checkpoint", checkpoint_id), ("model", BERT), ("dataset", row.datasets[0])):
                assert f"run:{row.id}" in platform.registry.holders(session, kind, asset_id)


def test_what_a_restored_run_needs_and_is_not_here(platform: Platform, api: TestClient, planned: str) -> None:
    checkpoint_id = _checkpoint(platform, planned)
    folder = platform.ledger.run_dir(planned).checkpoints / checkpoint_name(2)
    dataset_id = _run(platform, planned).datasets[0]

    def refused(code: str) -> Any:
        answer = _restore(api, checkpoint_id)
        assert answer.json().get("error") == code, answer.text
        return answer.json().get("details")

    spec = _run(platform, planned).spec
    other = {**spec, "datasets": [{**spec["datasets"][0], "version": "another"}]}
    write_json(folder / "spec.json", other)
    write_manifest(folder, step=2)
    assert refused("DATA_CHANGED")["id"] == dataset_id
    write_json(folder / "spec.json", {**spec, "baseModel": {**spec["baseModel"], "revision": "c0"}})
    write_manifest(folder, step=2)
    assert refused("ASSET_NOT_READY")["held"] == "c1"
    write_json(folder / "spec.json", spec)
    write_manifest(folder, step=2)
    assert api.delete(f"/api/assets/{BERT}").status_code == 200
    assert refused("ASSET_NOT_READY")["id"] == BERT
    (folder / "optimizer.pt").write_bytes(b"short")
    refused("MODEL_DAMAGED")
    shutil.rmtree(folder)
    refused("CHECKPOINT_NOT_FOUND")
    assert len(api.get("/api/analysis/training/jobs").json()["data"]) == 1


def test_a_data_set_that_was_deleted(platform: Platform, api: TestClient, planned: str) -> None:
    checkpoint_id = _checkpoint(platform, planned)
    dataset_id = _run(platform, planned).datasets[0]
    assert api.delete(f"/api/assets/{dataset_id}").status_code == 200
    answer = _restore(api, checkpoint_id)
    assert (answer.status_code, answer.json()["error"]) == (409, "ASSET_NOT_READY")


def test_a_clone_is_planned_anew_from_what_was_asked(platform: Platform, api: TestClient, planned: str) -> None:
    def cloned(**request: Any) -> RunRow:
        answer = api.post(f"/api/training/clone/{planned}", **request)
        assert answer.status_code == 200, answer.text
        return _run(platform, answer.json()["data"]["runId"])

    first = _run(platform, planned)
    same = cloned()
    assert same.origin == {"kind": "clone", "runId": planned}
    assert same.spec["resumeFrom"] is None
    assert (same.name, same.spec["config"], same.datasets) == (first.name, first.spec["config"], first.datasets)
    changed = cloned(json={"name": "دیگر", "config": {"maxSteps": None, "seed": 7}}).spec
    assert changed["name"] == "دیگر"
    assert changed["config"] == {**first.spec["config"], "maxSteps": None, "seed": 7}
    assert cloned(json={"config": None}).spec["config"]["batchSize"] == 16
    for body, code in (
        ({"baseModel": "nobody/x"}, "MODEL_NOT_ALLOWED"),
        ({"config": {"optimizer": "x"}}, "NOT_SUPPORTED"),
    ):
        assert api.post(f"/api/training/clone/{planned}", json=body).json()["error"] == code
    assert api.post("/api/training/clone/" + "f" * 32).json()["error"] == "RUN_NOT_FOUND"


def test_a_run_whose_spec_is_none_cannot_be_cloned(platform: Platform, api: TestClient) -> None:
    platform.supervisor.stop()
    run_id = put_run(platform, RunState.COMPLETED)
    answer = api.post(f"/api/training/clone/{run_id}")
    assert (answer.status_code, answer.json()["error"]) == (409, "SPEC_INVALID")


@pytest.mark.parametrize(
    ("config", "changes", "wanted"),
    [
        (TrainConfig(seed=7), {}, {"seed": 7}),
        (TrainConfig(seed=7), {"seed": None}, {}),
        (TrainConfig(max_steps=9), {"epochs": 2.0}, {"epochs": 2.0}),
        (TrainConfig(max_steps=9), {"epochs": 2.0, "maxSteps": 5}, {"epochs": 2.0, "maxSteps": 5}),
        (TrainConfig(epochs=5.0), {"maxSteps": 5}, {"epochs": 5.0, "maxSteps": 5}),
        (
            TrainConfig(lora=LoraConfig(rank=4, target_modules=["query"])),
            {"lora": {"alpha": 2.0}},
            {"lora": {"rank": 4, "alpha": 2.0, "dropout": 0.0, "targetModules": ["query"]}},
        ),
        (TrainConfig(lora=LoraConfig(rank=4)), {"lora": None}, {}),
        (TrainConfig(columns={"text": "a", "label": "b"}), {"columns": {"text": "c"}}, {"columns": {"text": "c"}}),
    ],
)
def test_changes_are_laid_over_what_differed_from_the_defaults(
    platform: Platform, api: TestClient, config: TrainConfig, changes: dict[str, Any], wanted: dict[str, Any]
) -> None:
    spec = RunSpec("a" * 32, "x", "text-classification", ModelRef("c" * 32, "/x", "checkpoint"), [], config)
    value = {**spec.to_json(), "datasets": [{"id": "d", "path": "/d", "version": "v", "columns": {}}]}
    run = _run(platform, put_run(platform, RunState.COMPLETED, spec=value))
    body = cloned_body(run, CloneBody.model_validate({"config": changes}))
    assert body.base_model.id == "c" * 32
    assert body.config is not None
    assert body.config.model_dump(by_alias=True, exclude_unset=True) == wanted
