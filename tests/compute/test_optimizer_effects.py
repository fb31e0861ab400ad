"""Optimizers and schedules by what they do to the weights, against formulas written here."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer, BertForSequenceClassification

from kargah.spec.run_spec import LR_SCHEDULERS, OPTIMIZERS, ModelRef

from .conftest import MakeRun
from .tiny import NEGATIVE, POSITIVE, attempt, sentences

Weights = dict[str, torch.Tensor]

RATE = 0.01
DECAY = 0.1
ROWS = 90
# One step over all rows with every weight known before: what the optimizer did can be computed.
ONE_STEP: dict[str, Any] = {
    "max_steps": 1, "batch_size": ROWS, "learning_rate": RATE, "lr_scheduler": "constant", "max_grad_norm": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def before(steady_model: Path) -> tuple[Weights, Weights]:
    """Weights of the starting model, and the gradient of the mean loss over the training rows."""
    model = BertForSequenceClassification.from_pretrained(steady_model)
    tokenizer = AutoTokenizer.from_pretrained(steady_model)
    texts, labels = sentences(ROWS, 1)
    numbers = torch.tensor([sorted([POSITIVE, NEGATIVE]).index(label) for label in labels])
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    functional.cross_entropy(model(**inputs).logits, numbers).backward()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return weights, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def spared(name: str) -> bool:
    """Whether weight decay leaves this weight alone."""
    return name.endswith("bias") or "LayerNorm" in name


def adamw(w: torch.Tensor, g: torch.Tensor, decay: float) -> torch.Tensor:
    return w * (1 - RATE * decay) - RATE * g / (g.abs() + 1e-8)  # both moments are corrected to g and g²


def adam(w: torch.Tensor, g: torch.Tensor, decay: float) -> torch.Tensor:
    g = g + decay * w
    return w - RATE * g / (g.abs() + 1e-8)


def sgd(w: torch.Tensor, g: torch.Tensor, decay: float) -> torch.Tensor:
    return w - RATE * (g + decay * w)


def rmsprop(w: torch.Tensor, g: torch.Tensor, decay: float) -> torch.Tensor:
    g = g + decay * w
    return w - RATE * g / ((0.01 * g**2).sqrt() + 1e-8)


def adagrad(w: torch.Tensor, g: torch.Tensor, decay: float) -> torch.Tensor:
    g = g + decay * w
    return w - RATE * g / (g.abs() + 1e-10)


def adafactor(w: torch.Tensor, g: torch.Tensor, decay: float) -> torch.Tensor:
    """Shazeer, Stern 2018, at the first step: the second moment is g², factored for a matrix; updates clipped to 1."""
    square = g**2 + 1e-30
    if g.dim() >= 2:
        row, column = square.mean(dim=-1, keepdim=True), square.mean(dim=-2, keepdim=True)
        square = row * column / row.mean(dim=-2, keepdim=True)
    update = g / square.sqrt()
    update = update / max(1.0, float(update.pow(2).mean().sqrt()))
    return w * (1 - RATE * decay) - RATE * update


FIRST_UPDATE: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "adamw": adamw, "adam": adam, "sgd": sgd, "adafactor": adafactor, "rmsprop": rmsprop, "adagrad": adagrad,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_first_update_of_every_optimizer_is_its_formula(
    make_run: MakeRun, steady: ModelRef, before: tuple[Weights, Weights], optimizer: str
) -> None:
    ending, _ = attempt(make_run(spec={"base_model": steady}, optimizer=optimizer, weight_decay=DECAY, **ONE_STEP))
    weights, gradients = before
    assert sum(spared(name) for name in weights) > 10
    for name, after in ending.model.named_parameters():
        w, g = weights[name], gradients[name]
        decay = 0.0 if spared(name) else DECAY
        expected = FIRST_UPDATE[optimizer](w, g, decay)
        # Where the gradient is all but zero, its sign is rounding and so is the direction of a normalised update.
        clear = (g.abs() > 1e-6) & ((g + decay * w).abs() > 1e-6) | (g == 0)
        torch.testing.assert_close(after.detach()[clear], expected[clear], atol=2e-6, rtol=1e-4, msg=name)
        assert clear.float().mean() > 0.5 or "key.bias" in name, name  # a bias of the keys moves no attention at all


@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - {"adamw"}))  # which every other test of pauses has
def test_every_optimizer_goes_on_after_a_pause_as_if_there_had_been_none(make_run: MakeRun, optimizer: str) -> None:
    options = {"optimizer": optimizer, "max_steps": 5, "log_every_steps": 1, "weight_decay": DECAY}
    _, straight = attempt(make_run(**options))
    run_dir = make_run(**options)
    _, first = attempt(run_dir, 1, end_after_step=2)
    _, second = attempt(run_dir, 2)
    assert {**first.losses(), **second.losses()} == straight.losses()
    assert len(second.losses()) == 3


STEPS = 14  # of which 12 are an epoch, so that a restart falls into the run
PEAK = 0.02


def share_of_peak(schedule: str, step: int, warmup: int) -> float:
    """The learning rate of the update after `step` others, as a share of the peak."""
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (STEPS - warmup)
    since = step - warmup
    return {
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "cosine_with_restarts": (1 + math.cos(math.pi * (2 * done % 1))) / 2,
        "polynomial": (1 - done) ** 2,
        "constant_with_warmup": 1.0,
        # It falls with the root of the steps since the first, or without a warm-up as if there had been 10,000 before.
        "inverse_sqrt": math.sqrt((warmup or 10_000) / (since + (warmup or 10_000))),
    }[schedule]


@pytest.mark.parametrize(
    ("schedule", "warmup"), [*((name, 4) for name in LR_SCHEDULERS), ("linear", 0), ("inverse_sqrt", 0)]
)
def test_learning_rate_follows_its_formula_in_the_log_and_in_the_weights(
    make_run: MakeRun, steady: ModelRef, before: tuple[Weights, Weights], schedule: str, warmup: int
) -> None:
    options = {"lr_scheduler": schedule, "warmup_steps": warmup, "learning_rate": PEAK, "weight_decay": 2.0}
    run_dir = make_run(spec={"base_model": steady}, max_steps=STEPS, log_every_steps=1, **options)
    ending, sink = attempt(run_dir)
    expected = [PEAK * share_of_peak(schedule, step, warmup) for step in range(STEPS)]
    assert [record["learningRate"] for record in sink.of("metric")] == pytest.approx(expected, abs=1e-12)
    assert ("constant has no warm-up" in sink.messages()) is (schedule == "constant" and warmup > 0)
    # What no row uses has no gradient and shrinks by rate times decay alone: the rates that were really applied.
    left = math.prod(1 - rate * 2.0 for rate in expected)
    assert left < 0.9
    name = "bert.embeddings.position_embeddings.weight"
    unused = slice(30, None)
    assert not before[1][name][unused].any()
    after = ending.model.get_parameter(name).detach()
    torch.testing.assert_close(after[unused], left * before[0][name][unused], atol=1e-7, rtol=1e-4)


def test_clipping_bounds_the_update_and_nought_means_none(
    make_run: MakeRun, steady: ModelRef, before: tuple[Weights, Weights]
) -> None:
    weights, gradients = before
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))

    def moved(max_grad_norm: float) -> float:
        options = {**ONE_STEP, "optimizer": "sgd", "learning_rate": 1.0, "log_every_steps": 1}
        ending, sink = attempt(make_run(spec={"base_model": steady}, **options | {"max_grad_norm": max_grad_norm}))
        assert sink.of("metric")[0]["gradNorm"] == pytest.approx(norm, rel=1e-4)  # as it was before clipping
        changes = [(p.detach() - weights[name]).double() for name, p in ending.model.named_parameters()]
        return math.sqrt(sum(float((change**2).sum()) for change in changes))

    assert moved(0.25 * norm) == pytest.approx(0.25 * norm, rel=1e-4)
    assert moved(0.0) == pytest.approx(norm, rel=1e-4)
    assert moved(2 * norm) == pytest.approx(norm, rel=1e-4)


# 90 rows: a last batch of 2 rows beside eleven of 8, or one of 2 behind four times eleven of 2.
def test_accumulated_batches_equal_one_large_batch_and_so_does_the_uneven_last(
    make_run: MakeRun, steady: ModelRef
) -> None:
    options = {"spec": {"base_model": steady}, "optimizer": "sgd", "learning_rate": 0.1, "log_every_steps": 1}
    large, one = attempt(make_run(**options, max_steps=14, batch_size=8))
    small, many = attempt(make_run(**options, max_steps=14, batch_size=2, gradient_accumulation_steps=4))
    assert list(many.losses().values()) == pytest.approx(list(one.losses().values()), abs=1e-6)
    for name, tensor in large.model.named_parameters():
        torch.testing.assert_close(small.model.get_parameter(name), tensor, atol=1e-6, rtol=0)
    # An uneven step of two batches, of 4 rows and of 2, weighs every row alike.
    options |= {"max_steps": 8, "max_grad_norm": 0.0}
    whole, _ = attempt(make_run(**options, batch_size=12))
    uneven, _ = attempt(make_run(**options, batch_size=4, gradient_accumulation_steps=3))
    for name, tensor in whole.model.named_parameters():
        torch.testing.assert_close(uneven.model.get_parameter(name), tensor, atol=1e-6, rtol=0)
