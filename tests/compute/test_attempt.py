"""Whole attempts of a tiny real model: learning, records, checkpoints, early stopping."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kargah.compute.checkpoints import list_checkpoints
from kargah.spec.control import Outcome
from kargah.spec.layout import RunDir
from kargah.spec.manifest import read_manifest, verify_folder
from kargah.spec.run_spec import DatasetRef

from .conftest import MakeRun
from .tiny import NEGATIVE, POSITIVE, attempt, sentences, write_split


def test_loss_falls_and_every_record_says_what_it_should(make_run: MakeRun) -> None:
    ending, sink = attempt(make_run(max_steps=60, learning_rate=5e-3, log_every_steps=7))
    losses = list(sink.losses().values())
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert ending.outcome is Outcome.COMPLETED
    assert ending.step == 60

    kinds = [record["type"] for record in sink.records]
    assert kinds.index("started") < kinds.index("metric")
    (started,) = sink.of("started")
    assert started["labels"] == sorted([POSITIVE, NEGATIVE])
    assert (started["startStep"], started["totalSteps"]) == (0, 60)
    assert (started["numTrainRows"], started["numValidationRows"]) == (90, 30)
    assert [record["step"] for record in sink.of("metric")] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    for record in sink.of("metric"):
        assert record["throughput"] > 0
        assert record["gradNorm"] > 0
        assert record["epoch"] == pytest.approx(record["step"] / 12)
    # Five epochs of twelve steps, each evaluated and kept while it is among the last two or the best.
    assert [record["step"] for record in sink.of("evaluation")] == [12, 24, 36, 48, 60]
    last = sink.of("evaluation")[-1]
    assert last["accuracy"] > 0.9
    assert set(last["metrics"]) == {"macroF1"}


def test_checkpoint_is_a_plain_model_folder_with_labels_byte_for_byte(trained: RunDir) -> None:
    folder = trained.checkpoints / "step-00000060"
    verify_folder(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert [model.config.id2label[0], model.config.id2label[1]] == sorted([POSITIVE, NEGATIVE])
    texts, labels = sentences(20, seed=9)
    model.eval()
    with torch.no_grad():
        numbers = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(-1).tolist()
    assert sum(model.config.id2label[n] == label for n, label in zip(numbers, labels, strict=True)) >= 18
    manifest = read_manifest(folder)
    assert (manifest["step"], manifest["epoch"]) == (60, 5.0)
    assert manifest["labels"] == sorted([POSITIVE, NEGATIVE])
    assert set(manifest["metrics"]) == {"accuracy", "valLoss", "macroF1"}


def test_keeps_the_best_and_the_last_checkpoints_and_tells_of_the_others(make_run: MakeRun) -> None:
    run_dir = make_run(max_steps=24, checkpoint_every_steps=4, eval_every_steps=4, keep_checkpoints=2)
    ending, sink = attempt(run_dir)
    written = [record["name"] for record in sink.of("checkpoint")]
    removed = [record["name"] for record in sink.of("checkpointRemoved")]
    left = [checkpoint.name for checkpoint in list_checkpoints(run_dir.checkpoints)]
    assert written == [f"step-{step:08d}" for step in (4, 8, 12, 16, 20, 24)]
    assert sorted(left + removed) == written
    assert set(left) == {"step-00000020", "step-00000024", ending.best_checkpoint}
    assert not list(run_dir.checkpoints.glob(".*"))
    best = max(sink.of("evaluation"), key=lambda record: (record["accuracy"], -record["valLoss"]))
    assert ending.best_checkpoint == f"step-{best['step']:08d}"
    assert [record["name"] for record in sink.of("checkpoint") if record["best"]][-1] == ending.best_checkpoint


def test_early_stopping_ends_the_run_and_gives_back_the_best(make_run: MakeRun) -> None:
    run_dir = make_run(
        max_steps=400,
        learning_rate=0.05,  # learns, then thrashes: the best is not the last
        lr_scheduler="constant",
        eval_every_steps=3,
        enable_early_stopping=True,
        early_stopping_patience=4,
        keep_checkpoints=1,
    )
    ending, sink = attempt(run_dir)
    evaluations = sink.of("evaluation")
    assert ending.outcome is Outcome.COMPLETED
    assert ending.step < 400
    best = max(evaluations, key=lambda record: (record["accuracy"], -record["valLoss"]))
    assert ending.best_checkpoint == f"step-{best['step']:08d}"
    assert best["step"] == evaluations[-5]["step"]
    stored = AutoModelForSequenceClassification.from_pretrained(run_dir.checkpoints / ending.best_checkpoint)
    for name, tensor in stored.state_dict().items():
        assert torch.equal(tensor, ending.model.state_dict()[name]), name
    # The last state is kept too, so the run can be looked into; a second attempt sees that all is done.
    assert list_checkpoints(run_dir.checkpoints)[-1].step == ending.step
    again, second = attempt(run_dir, 2)
    assert (again.outcome, again.step) == (Outcome.COMPLETED, ending.step)
    assert not second.of("metric")


def test_second_text_of_a_pair_is_seen(make_run: MakeRun, tmp_path: Path) -> None:
    texts, _ = sentences(160, seed=4)
    pairs = [text if number % 2 else texts[number - 1] for number, text in enumerate(texts)]
    same = [text == pair for text, pair in zip(texts, pairs, strict=True)]
    write_split(tmp_path, "train", {"a": texts, "b": pairs, "same": same})
    dataset = DatasetRef("pairs", str(tmp_path), "v1", {"text": "a", "textPair": "b", "label": "same"})
    options = {"max_steps": 6, "max_length": 40, "validation_split": 0.2}
    ending, sink = attempt(make_run(spec={"datasets": [dataset]}, **options))
    assert ending.model.config.id2label == {0: "False", 1: "True"}
    assert sink.of("started")[0]["numValidationRows"] == pytest.approx(32, abs=4)
    assert "validation rows split off by content" in sink.messages()
    # The other column as second text: the same rows and labels, other losses.
    twice = replace(dataset, columns={**dataset.columns, "textPair": "a"})
    assert attempt(make_run(spec={"datasets": [twice]}, **options))[1].losses() != sink.losses()


def test_without_validation_rows_there_is_no_evaluation(make_run: MakeRun, tmp_path: Path) -> None:
    texts, labels = sentences(30)
    write_split(tmp_path, "train", {"text": texts, "label": labels})
    dataset = DatasetRef("d", str(tmp_path), "v1", {"text": "text", "label": "label"})
    ending, sink = attempt(make_run(spec={"datasets": [dataset]}, validation_split=0.0, max_steps=3))
    assert not sink.of("evaluation")
    assert ending.best_checkpoint is None
    assert sink.of("checkpoint")[-1]["metrics"] == {}
