"""Distillation: what the loss is, that the teacher matters, and that labels are matched by name."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, set_seed

from kargah.compute.attempt import read_spec
from kargah.compute.classifier import load_folder
from kargah.compute.distil import cross_entropy_sum, distillation_objective
from kargah.compute.failures import Code, TrainingFailed
from kargah.spec.layout import RunDir
from kargah.spec.run_spec import ModelRef

from .conftest import MakeRun
from .tiny import attempt, make_tokenizer, sentences


@pytest.fixture(scope="module")
def teacher(trained: RunDir) -> ModelRef:
    return ModelRef("teacher", str(trained.checkpoints / "step-00000060"), "checkpoint")


def test_the_loss_is_hintons_formula() -> None:
    logits = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    labels = torch.tensor([0, 1])
    loss = distillation_objective(0.3, 2.0)(logits, labels, teacher)
    expected = 0.0
    for row in range(2):
        p = [math.exp(v / 2) for v in teacher[row].tolist()]
        q = [math.exp(v / 2) for v in logits[row].tolist()]
        divergence = sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        expected += 0.3 * 4 * divergence
    expected += 0.7 * functional.cross_entropy(logits, labels, reduction="sum").item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_gradient_of_the_whole_loss_at_alpha_nought_is_that_of_the_labels() -> None:
    labels = torch.tensor([1, 0])
    teacher = torch.randn(2, 2)
    one, other = (torch.zeros(2, 2, requires_grad=True) for _ in range(2))
    distillation_objective(0.0, 3.0)(one, labels, teacher).backward()
    cross_entropy_sum(other, labels, None).backward()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.equal(one.grad, other.grad)


def test_alpha_nought_equals_no_teacher_and_alpha_one_does_not(make_run: MakeRun, teacher: ModelRef) -> None:
    _, alone = attempt(make_run())
    _, nought = attempt(make_run(spec={"teacher_model": teacher}, distillation_alpha=0.0))
    _, whole = attempt(make_run(spec={"teacher_model": teacher}, distillation_alpha=1.0))
    assert nought.losses() == alone.losses()
    assert whole.losses()[10] != alone.losses()[10]
    # Validation loss is plain cross entropy, whatever the student learns from.
    assert nought.of("evaluation")[-1]["valLoss"] == alone.of("evaluation")[-1]["valLoss"]


@pytest.fixture(scope="module")
def contrary(tmp_path_factory: pytest.TempPathFactory, trained: RunDir) -> Path:
    """The trained model with its two labels' names exchanged: it judges the opposite of the truth."""
    folder = tmp_path_factory.mktemp("contrary")
    source = trained.checkpoints / "step-00000060"
    model = BertForSequenceClassification.from_pretrained(source)
    names = model.config.id2label
    model.config.id2label = {0: names[1], 1: names[0]}
    model.config.label2id = {names[1]: 0, names[0]: 1}
    model.save_pretrained(folder)
    for path in source.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_alpha_one_follows_the_teacher_by_the_names_of_labels(make_run: MakeRun, contrary: Path) -> None:
    """A teacher that says the opposite makes a student that says the opposite; order of labels is no excuse."""
    teacher = ModelRef("contrary", str(contrary))
    run_dir = make_run(spec={"teacher_model": teacher}, max_steps=60, learning_rate=5e-3, distillation_alpha=1.0)
    _, sink = attempt(run_dir)
    assert sink.of("evaluation")[-1]["accuracy"] < 0.1
    texts, _ = sentences(30, seed=8)
    student, judge = load_folder(run_dir.checkpoints / "step-00000060"), load_folder(contrary)
    assert student.labels == list(reversed(judge.labels))
    said = [student.labels[n] for n in student.logits(texts).argmax(axis=1)]
    judged = [judge.labels[n] for n in judge.logits(texts).argmax(axis=1)]
    assert sum(a == b for a, b in zip(said, judged, strict=True)) >= 27


def test_teacher_may_have_another_tokenizer_and_is_asked_once(make_run: MakeRun, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(["فقط حروف دیگر و واژه‌های اندک", *sentences(40)[0]])
    set_seed(1)
    spec = read_spec(make_run())
    labels = sorted(set(sentences(20)[1]))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        max_position_embeddings=16, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    run_dir = make_run(spec={"teacher_model": replace(spec.base_model, path=str(tmp_path))}, max_steps=4)
    _, first = attempt(run_dir, 1, end_after_step=2)
    (cache,) = (run_dir.root / "teacher").iterdir()
    logits = np.load(cache)
    assert logits.shape == (90, 2)
    assert "the teacher judges" in first.messages()
    ending, second = attempt(run_dir, 2)
    assert ending.step == 4
    assert "the teacher judges" not in second.messages()
    assert "teacher logits read" in second.messages()


def test_teacher_of_other_labels_is_refused(make_run: MakeRun, tmp_path: Path, trained: RunDir) -> None:
    source = trained.checkpoints / "step-00000060"
    model = BertForSequenceClassification.from_pretrained(source)
    model.config.id2label = {0: "سرد", 1: "گرم"}
    model.config.label2id = {"سرد": 0, "گرم": 1}
    model.save_pretrained(tmp_path)
    for path in source.glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(TrainingFailed) as caught:
        attempt(make_run(spec={"teacher_model": ModelRef("t", str(tmp_path))}))
    assert caught.value.code is Code.TEACHER_MISMATCH
    assert caught.value.params["teacherLabels"] == ["سرد", "گرم"]
    with pytest.raises(TrainingFailed) as caught:
        attempt(make_run(spec={"teacher_model": read_spec(make_run()).base_model}))
    assert caught.value.code is Code.MODEL_DAMAGED
