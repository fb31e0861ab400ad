"""What cannot be done never starts: every refusal of a start with its code, and nothing left behind."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from living import BERT, PICKLED, HoldModel
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.spec.precision import cpu_has_native_bf16

Upload = Callable[..., str]
ROWS = [("خوب بود", "۱"), ("بد بود", "۰"), ("عالی", "۱"), ("زشت", "۰")] * 5


@pytest.fixture
def opinions(upload: Upload) -> str:
    return upload(ROWS)


def _start(api: TestClient, opinions: str, **body: Any) -> Any:
    return api.post("/api/training/start", json={"baseModel": BERT, "datasets": [opinions], **body})


def _refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["error"]) == (status, code), answer.text
    assert body["message"]
    return body


def test_refusals_of_a_start(
    api: TestClient, platform: Platform, hold_model: HoldModel, upload: Upload, opinions: str
) -> None:
    """One server for all of them: nothing of a refusal may stay."""
    model = hold_model()

    # What is not a body of the right form, with the field that is wrong.
    for body, field in (
        ({"config": {"epoch": 3}}, "config.epoch"),
        ({"surplus": 1}, "surplus"),
        ({"config": {"epochs": 0}}, "config.epochs"),
        ({"config": {"epochs": "3"}}, "config.epochs"),
        ({"config": {"batchSize": 1.5}}, "config.batchSize"),
        ({"config": {"batchSize": True}}, "config.batchSize"),
        ({"config": {"columns": {"texts": "a"}}}, "config.columns.texts.[key]"),
        ({"config": {"lora": {"rank": 0}}}, "config.lora.rank"),
        ({"config": {"lora": {"targetModules": []}}}, "config.lora.targetModules"),
        ({"config": {"dropout": 1}}, "config.dropout"),
        ({"config": {"epochs": 1_000_000_000}}, "config.epochs"),
        ({"config": {"weightDecay": -0.1}}, "config.weightDecay"),
        ({"config": {"validationSplit": 1}}, "config.validationSplit"),
        ({"datasets": []}, "datasets"),
        ({"datasets": opinions}, "datasets"),
        ({"datasets": [opinions, opinions]}, "datasets"),
        ({"datasets": ["../x"]}, "datasets.0"),
        ({"baseModel": None}, "baseModel"),
        ({"baseModel": {"id": BERT, "path": "/etc"}}, "baseModel.path"),
        ({"name": ""}, "name"),
        ({"name": "ن" * 201}, "name"),
    ):
        found = _refused(_start(api, opinions, **body), 400, "VALIDATION_FAILED")
        assert [problem["field"] for problem in found["details"]] == [field], body
    for text in ("NaN", "Infinity", "-Infinity", "1e999"):
        sent = json.dumps({"baseModel": BERT, "datasets": [opinions], "config": {"learningRate": "X"}})
        answer = api.post(
            "/api/training/start", content=sent.replace('"X"', text), headers={"Content-Type": "application/json"}
        )
        found = _refused(answer, 400, "VALIDATION_FAILED")
        assert found["details"][0]["field"] == "config.learningRate"

    # What the contract names and this version cannot do.
    for config, field in (
        ({"optimizer": "lion"}, "config.optimizer"),
        ({"lrScheduler": "magic"}, "config.lrScheduler"),
        ({"mixedPrecision": "fp8"}, "config.mixedPrecision"),
        ({"maxLength": 512}, "config.maxLength"),
    ):
        found = _refused(_start(api, opinions, config=config), 400, "NOT_SUPPORTED")
        assert field in found["message"]
        assert [problem["field"] for problem in found["details"]] == [field]
        assert found["details"][0]["problem"] in found["message"]
    _refused(_start(api, opinions, task="translation"), 400, "NOT_SUPPORTED")
    for config, field in (
        ({"lora": {"rank": 4}, "vocabulary": "fa"}, "config.vocabulary"),
        ({"lora": {}, "embeddingLearningRate": 0.001}, "config.embeddingLearningRate"),
    ):
        found = _refused(_start(api, opinions, config=config), 400, "NOT_SUPPORTED")
        assert field in found["message"]
    found = _refused(
        _start(api, opinions, config={"lora": {"targetModules": ["query", "q_proj"]}}), 400, "VALIDATION_FAILED"
    )
    assert [problem["field"] for problem in found["details"]] == ["config.lora.targetModules.1"]
    assert "query" in found["details"][0]["problem"]
    platform.runs.has_gpu = False
    for precision, allowed in (("fp16", False), ("bf16", cpu_has_native_bf16())):
        if not allowed:
            found = _refused(_start(api, opinions, config={"mixedPrecision": precision}), 400, "NOT_SUPPORTED")
            assert "config.mixedPrecision" in found["message"]
            asked = {"baseModel": BERT, "datasets": [opinions], "config": {"mixedPrecision": precision}}
            said = api.post("/api/training/start", json=asked, headers={"Accept-Language": "fa"}).json()
            assert "float" in said["message"]
            assert re.search("[\u0600-\u06ff]", said["details"][0]["problem"])

    # What is not here, or not of use.
    found = _refused(_start(api, opinions, baseModel=PICKLED), 409, "ASSET_NOT_READY")
    assert found["details"] == {"id": PICKLED, "status": "available"}
    _refused(_start(api, opinions, teacherModel=PICKLED), 409, "ASSET_NOT_READY")
    _refused(_start(api, "site/opinions"), 409, "ASSET_NOT_READY")
    found = _refused(
        _start(api, opinions, config={"columns": {"text": "متن", "label": "label"}}), 400, "COLUMN_NOT_FOUND"
    )
    assert "متن" in found["message"]
    assert found["details"] == {"available": ["label", "text"]}
    _refused(_start(api, opinions, config={"columns": {"text": "text"}}), 400, "NO_LABELS")
    _refused(_start(api, upload([("الف", "یک"), ("ب", "یک"), ("پ", "یک"), ("ت", "یک")])), 400, "SINGLE_CLASS")

    many = upload([(f"متن {number}", f"برچسب {number}") for number in range(150)])
    found = _refused(_start(api, many), 400, "TOO_MANY_LABELS")
    assert found["details"]["labels"] == 150

    # A teacher must know the labels of the data.
    config_file = model / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    teacher = hold_model(PICKLED)
    _refused(_start(api, opinions, teacherModel=PICKLED), 400, "TEACHER_MISMATCH")
    other = {**config, "architectures": ["BertForSequenceClassification"], "id2label": {"0": "سیاه", "1": "سفید"}}
    size = (teacher / "config.json").stat().st_size
    text = json.dumps(other, ensure_ascii=False)
    (teacher / "config.json").write_text(text, encoding="utf-8")
    manifest = json.loads((teacher / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"]["config.json"]["sizeBytes"] == size
    manifest["files"]["config.json"]["sizeBytes"] = len(text.encode())
    (teacher / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = _refused(_start(api, opinions, teacherModel=PICKLED), 400, "TEACHER_MISMATCH")
    assert found["details"] == {"teacher": ["سفید", "سیاه"], "data": ["۰", "۱"]}

    # A damaged folder, file by file.
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    found = _refused(_start(api, opinions), 409, "MODEL_DAMAGED")
    assert "model.safetensors" in found["message"]
    weights.unlink()
    _refused(_start(api, opinions), 409, "MODEL_DAMAGED")
    weights.write_bytes(content)
    for broken in ("{", "[]"):
        config_file.write_text(broken, encoding="utf-8")
        found = _refused(_start(api, opinions), 409, "MODEL_DAMAGED")
        assert "config.json" in found["message"]
        assert str(platform.home.root) not in found["message"]

    with platform.database.read() as session:
        damaged = platform.registry.folder(platform.registry.get(session, opinions, "dataset"))
    (damaged / "dataset.json").unlink()
    _refused(_start(api, opinions, baseModel=PICKLED), 409, "DATA_DAMAGED")

    assert api.get("/api/analysis/training/jobs").json()["page"]["total"] == 0
    assert list(platform.home.runs.iterdir()) == []
    with platform.database.read() as session:
        assert platform.registry.holders(session, "model", BERT) == []


def _upload_splits(api: TestClient, name: str, columns: dict[str, str], **splits: str) -> str:
    answer = api.post(
        "/api/datasets/upload",
        data={"name": name, "columns": json.dumps(columns)},
        files={f"file:{split}": (f"{split}.csv", text.encode()) for split, text in splits.items()},
    )
    assert answer.status_code == 202, answer.text
    dataset_id: str = answer.json()["data"]["datasetId"]
    assert '"done"' in api.get("/api/datasets/download/progress", params={"datasetId": dataset_id}).text
    return dataset_id


TWO_LABELS = "متن,دوم,برچسب\nخوب,یک,مثبت\nبد,دو,منفی\nعالی,سه,مثبت\n"


def test_labels_are_judged_over_all_splits_and_data_sets(api: TestClient, hold_model: HoldModel) -> None:
    hold_model()
    columns = {"text": "متن", "label": "برچسب"}
    foreign = TWO_LABELS + "نه این نه آن,چهار,خنثی\n"
    data = _upload_splits(api, "داوری", columns, train=TWO_LABELS, validation=foreign)
    found = _refused(_start(api, data), 400, "UNKNOWN_LABEL")
    assert "خنثی" in found["message"]
    assert found["details"] == {"label": "خنثی", "rows": 1}

    # Another data set of the same run may know the label; a label that validation never shows is no fault.
    knowing = _upload_splits(api, "دانا", columns, train=foreign, validation=TWO_LABELS)
    pairs = _upload_splits(api, "جفت", {**columns, "textPair": "دوم"}, train=TWO_LABELS, validation=TWO_LABELS)
    found = _refused(_start(api, data, datasets=[knowing, pairs]), 400, "VALIDATION_FAILED")
    assert [problem["field"] for problem in found["details"]] == ["datasets"]
    single = TWO_LABELS.replace("منفی", "مثبت")
    one_class = _upload_splits(api, "یک‌دست", columns, train=single, validation=single)
    _refused(_start(api, one_class), 400, "SINGLE_CLASS")
    blank = _upload_splits(api, "تهی", columns, train="متن,دوم,برچسب\n ,یک,مثبت\n,دو,منفی\n", validation=single)
    _refused(_start(api, blank), 400, "NOT_ENOUGH_ROWS")
    assert api.get("/api/analysis/training/jobs").json()["page"]["total"] == 0

    for chosen in ([data, knowing], [knowing]):
        answer = _start(api, data, datasets=chosen)
        assert answer.status_code == 200, answer.text
        api.post(f"/api/training/stop/{answer.json()['data']['runId']}")


def test_wishes_for_a_run_that_is_not_there(api: TestClient) -> None:
    for verb in ("pause", "resume", "stop"):
        _refused(api.post(f"/api/training/{verb}/{'a' * 32}"), 404, "RUN_NOT_FOUND")
    for path in ("training/status", "training/stream", "analysis/training/status", "analysis/training/export"):
        _refused(api.get(f"/api/{path}/{'a' * 32}"), 404, "RUN_NOT_FOUND")
