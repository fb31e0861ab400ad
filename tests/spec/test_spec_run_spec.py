"""The frozen spec: camelCase on disk, the user's own names untouched, every fault named with its place."""

import json
from dataclasses import replace
from typing import Any

import pytest

from kargah.spec.run_spec import DatasetRef, LoraConfig, ModelRef, RunSpec, SpecError, TrainConfig

SPEC = RunSpec(
    run_id="a" * 32,
    name="اجرای نخست",
    task="text-classification",
    base_model=ModelRef("org/model", "/models/m", "model", "c0ffee"),
    teacher_model=ModelRef("b" * 32, "/runs/t", "checkpoint"),
    datasets=[
        DatasetRef(
            "org/data", "/d", "v1", {"text": "متن_نظر", "textPair": "متن دوم", "label": "label_id"}, ["۰", "1"], True
        )
    ],
    config=TrainConfig(
        max_steps=30,
        columns={"text": "متن_نظر", "label": "my_label_col"},
        epochs=1.5,
        dropout=0.0,
        validation_split=0.25,
        lora=LoraConfig(4, 8.0, 0.1, ["query", "output.dense"]),
    ),
    resume_from="/runs/r/checkpoints/step-00000010",
    created_at="2026-01-01T00:00:00.000Z",
    kargah_version="0.1.0",
)


def test_a_spec_comes_back_from_json() -> None:
    value = json.loads(json.dumps(SPEC.to_json(), ensure_ascii=False))
    assert RunSpec.from_json(value) == SPEC


def test_names_on_disk() -> None:
    value = SPEC.to_json()
    assert value["baseModel"]["id"] == "org/model"
    assert value["config"]["gradientAccumulationSteps"] == 1
    assert value["config"]["lora"]["targetModules"] == ["query", "output.dense"]
    assert value["datasets"][0]["validationMade"] is True
    # Column names are the user's: an underscore in them is no separator of ours.
    assert value["datasets"][0]["columns"] == {"text": "متن_نظر", "textPair": "متن دوم", "label": "label_id"}
    assert value["config"]["columns"]["label"] == "my_label_col"


def test_defaults_are_read_where_the_file_says_nothing() -> None:
    value = replace(SPEC, teacher_model=None, config=TrainConfig()).to_json()
    value["config"] = {}
    del value["datasets"][0]["validationMade"]
    del value["teacherModel"], value["resumeFrom"]
    assert RunSpec.from_json(value) == replace(
        SPEC,
        teacher_model=None,
        resume_from=None,
        config=TrainConfig(),
        datasets=[replace(SPEC.datasets[0], validation_made=False)],
    )
    value["config"] = {"lora": {}}
    assert RunSpec.from_json(value).config.lora == LoraConfig(8, 16.0, 0.0, None)


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    value = SPEC.to_json()
    value["config"]["epochs"] = 2
    epochs = RunSpec.from_json(value).config.epochs
    assert epochs == 2.0
    assert isinstance(epochs, float)


@pytest.mark.parametrize(
    ("place", "change", "problem"),
    [
        ("spec.runId", {"runId": None}, "null"),
        ("spec.runId", {"runId": 7}, "type str"),
        ("spec.surplus", {"surplus": 1}, "known"),
        ("spec.datasets", {"datasets": []}, "at least one"),
        ("spec.datasets", {"datasets": {}}, "at least one"),
        ("spec.datasets[0]", {"datasets": ["org/data"]}, "object"),
        ("spec.datasets[0].path", {"datasets": [{"id": "a", "version": "v", "columns": {}}]}, "missing"),
        ("spec.datasets[0].columns", {"datasets": [{"id": "a", "path": "p", "version": "v", "columns": []}]}, "dict"),
        ("spec.baseModel", {"baseModel": "org/model"}, "object"),
        ("spec.baseModel.size", {"baseModel": {"id": "a", "path": "p", "size": 1}}, "known"),
        ("spec.config", {"config": None}, "null"),
        ("spec.config.epochs", {"config": {"epochs": "3"}}, "float"),
        ("spec.config.batchSize", {"config": {"batchSize": True}}, "int"),
        ("spec.config.batchSize", {"config": {"batchSize": 1.5}}, "int"),
        ("spec.config.enableEarlyStopping", {"config": {"enableEarlyStopping": 1}}, "bool"),
        ("spec.config.optimizer", {"config": {"optimizer": None}}, "null"),
        ("spec.config.batch_size", {"config": {"batch_size": 8}}, "known"),
        ("spec.config.lora", {"config": {"lora": 8}}, "object"),
        ("spec.config.lora.rank", {"config": {"lora": {"rank": 1.5}}}, "int"),
        ("spec.config.lora.r", {"config": {"lora": {"r": 8}}}, "known"),
        ("spec.config.dropout", {"config": {"dropout": "0.1"}}, "float"),
    ],
)
def test_faults_are_named(place: str, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as fault:
        RunSpec.from_json({**SPEC.to_json(), **change})
    assert fault.value.field == place
    assert problem in fault.value.problem


@pytest.mark.parametrize("name", ["runId", "name", "task", "baseModel", "datasets", "config"])
def test_what_must_be_there_is_missed(name: str) -> None:
    value = SPEC.to_json()
    del value[name]
    with pytest.raises(SpecError) as fault:
        RunSpec.from_json(value)
    assert (fault.value.field, fault.value.problem) == (f"spec.{name}", "is missing")


@pytest.mark.parametrize("value", [None, [], "spec", 3])
def test_what_is_no_object_is_no_spec(value: Any) -> None:
    with pytest.raises(SpecError, match="spec: must be an object"):
        RunSpec.from_json(value)
