"""The small programs around training: predict, evaluate, baselines."""

import io
import json
from pathlib import Path

import pytest
from sklearn.metrics import f1_score

from kargah.compute import baselines, evaluate, predict
from kargah.compute.classifier import load_folder
from kargah.compute.scores import cross_entropy, macro_f1
from kargah.spec.layout import RunDir
from kargah.spec.run_spec import DatasetRef

from .tiny import NEGATIVE, POSITIVE, write_split


@pytest.fixture(scope="module")
def checkpoint(trained: RunDir) -> Path:
    return trained.checkpoints / "step-00000060"


def test_predict_answers_line_by_line_in_order(checkpoint: Path) -> None:
    lines = [
        '"این فیلم عالی بود"\n',
        json.dumps({"text": "کتاب تازه بی‌کیفیت بود"}) + "\n",
        "\n",
        "{broken\n",
        json.dumps({"text": "هوای امروز زیبا بود", "textPair": "هوای امروز خراب شد"}) + "\n",
        json.dumps({"text": 3}) + "\n",
    ]
    output = io.StringIO()
    num_bad = predict.answer_lines(load_folder(checkpoint), lines, output)
    answers = [json.loads(line) for line in output.getvalue().splitlines()]
    assert num_bad == 2
    assert [answer.get("label") for answer in answers[:2]] == [POSITIVE, NEGATIVE]
    assert answers[2] == {"error": "INVALID_INPUT", "line": 4}
    assert answers[4] == {"error": "INVALID_INPUT", "line": 6}
    for answer in (answers[0], answers[1], answers[3]):
        scores = [entry["score"] for entry in answer["scores"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)
        assert (answer["label"], answer["score"]) == (answer["scores"][0]["label"], scores[0])
    assert POSITIVE in output.getvalue()  # Persian stays Persian


def test_evaluate_measures_a_checkpoint(
    checkpoint: Path, dataset: DatasetRef, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = json.dumps({"text": "متن", "label": "برچسب"})
    assert evaluate.main([str(checkpoint), dataset.path, "--split", "test", "--columns", columns]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] > 0.9
    assert result["macroF1"] > 0.9
    assert result["numRows"] == 30
    assert result["sizeBytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert result["sizeBytes"] == pytest.approx(4 * result["numParameters"], rel=0.1)
    assert result["latencyMs"] > 0


def test_evaluate_names_what_is_wrong(
    checkpoint: Path, base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path, "test", {"t": ["خوب"], "l": ["ناشناخته"]})
    for folder, columns, code in (
        (checkpoint, {"text": "t", "label": "l"}, "UNKNOWN_LABEL"),
        (checkpoint, {"text": "x", "label": "l"}, "COLUMN_NOT_FOUND"),
        (base_model, {"text": "t", "label": "l"}, "MODEL_DAMAGED"),
    ):
        assert evaluate.main([str(folder), str(tmp_path), "--columns", json.dumps(columns)]) == 1
        assert json.loads(capsys.readouterr().out)["error"] == code


def test_baselines_are_measured_the_same_way(dataset: DatasetRef, capsys: pytest.CaptureFixture[str]) -> None:
    columns = json.dumps({"text": "متن", "label": "برچسب"})
    assert baselines.main([dataset.path, "--columns", columns]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"majority", "tfidf"}
    assert result["tfidf"]["accuracy"] > 0.9 > result["majority"]["accuracy"]
    assert set(result["tfidf"]) == {"accuracy", "macroF1", "numRows", "numParameters", "sizeBytes", "latencyMs"}
    assert result["majority"]["numParameters"] == 0


def test_baselines_see_both_texts_of_a_pair(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pairs = ["بله" if number % 2 else "خیر" for number in range(20)]
        write_split(tmp_path, split, {"a": ["یکسان"] * 20, "b": pairs, "l": pairs})
    columns = {"text": "a", "textPair": "b", "label": "l"}
    result = baselines.measure_baselines(tmp_path, "test", columns)
    assert (result["majority"]["accuracy"], result["tfidf"]["accuracy"]) == (0.5, 1.0)


def test_scores_agree_with_scikit_learn_and_hand_calculation() -> None:
    import numpy as np

    truth, said = np.array([0, 1, 2, 2, 1, 0, 3]), np.array([0, 2, 2, 2, 1, 1, 0])
    assert macro_f1(truth, said) == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))
    logits = np.array([[1000.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    assert cross_entropy(logits, np.array([1, 0])) == pytest.approx((1000 + np.log(2)) / 2)
