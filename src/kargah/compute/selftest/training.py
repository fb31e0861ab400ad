"""A real, small training on one device: a given encoder learns the mood of built-in Persian sentences.

Model loading, tokenising, batches, loss and optimizer are those of a run; the loop is bare, for it must run on devices
that a run does not choose. Three trainings: the model's own dropout twice with one seed (speed, falling loss,
repetition), and once without dropout, whose losses another device must show too.
"""

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from kargah.compute.arguments import optimizer_of
from kargah.compute.batches import EpochBatches
from kargah.compute.data import Rows
from kargah.compute.distil import cross_entropy_sum
from kargah.compute.encode import EncodedRows, encode_rows
from kargah.compute.forward import logits_of
from kargah.compute.model import (
    be_silent,
    load_classifier,
    load_tokenizer,
    load_trained,
    num_embeddings,
    num_parameters,
    takes_token_types,
)
from kargah.compute.peaks import peak_process_bytes
from kargah.compute.selftest.speed import synchronize
from kargah.compute.sink import Log
from kargah.spec.run_spec import TrainConfig

STEPS, QUICK_STEPS = 30, 12
COMPARED_STEPS = 5
"""Mean losses of so many first and last steps are compared."""
CONFIG = TrainConfig(batch_size=16, learning_rate=1e-3, max_length=32, seed=42)
LABELS = ["ناخوش", "خوش"]
_FRAMES = ("این {thing} {word} بود", "به نظر من {thing} {word} است", "{thing} را خریدم و {word} بود", "{thing} {word}!")
_THINGS = ("کتاب", "گوشی", "غذا", "فیلم", "سفر", "کفش", "هتل", "قهوه")
_WORDS = {"خوش": ("عالی", "زیبا", "بی‌نظیر", "دوست‌داشتنی"), "ناخوش": ("بد", "زشت", "خراب", "ناامیدکننده")}


@dataclass(slots=True)
class Course:
    """One training: loss and duration of each step, and the model that came out."""

    model: PreTrainedModel
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def lessons(folder: Path, device: torch.device, num_steps: int) -> Iterator[dict[str, Any]]:
    """Train, save and load, repeat, and train without dropout: a result each.

    Raises `TrainingFailed` for a damaged model, `RuntimeError` for what the device refuses or cannot hold.
    """
    be_silent()
    tokenizer = load_tokenizer(folder)
    _forget_peak(device)
    first = _train(folder, tokenizer, device, num_steps, with_dropout=True)
    yield _learnt(first, device)
    yield _reloaded(first.model, tokenizer, device)
    again = _train(folder, tokenizer, device, num_steps, with_dropout=True)
    difference = max(abs(a - b) for a, b in zip(first.losses, again.losses, strict=True))
    yield {"type": "repeat", "isIdentical": first.losses == again.losses, "maxDifference": _number(difference)}
    steady = _train(folder, tokenizer, device, num_steps, with_dropout=False)
    yield {"type": "agreement", "losses": [_number(loss) for loss in steady.losses]}


def sentences() -> Rows:
    """The built-in rows: every frame with every thing, a word of either mood in turn."""
    rows = Rows()
    for number, (frame, thing) in enumerate(itertools.product(_FRAMES, _THINGS)):
        for label, words in _WORDS.items():
            rows.texts.append(frame.format(thing=thing, word=words[number % len(words)]))
            rows.labels.append(label)
    return rows


def _train(
    folder: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device, num_steps: int, *, with_dropout: bool
) -> Course:
    set_seed(CONFIG.seed)
    model = load_classifier(folder, LABELS, tokenizer, Log(_Silence()))
    cast(nn.Module, model).to(device)
    model.train(with_dropout)
    rows = _encoded(model, tokenizer)
    made, options = optimizer_of(CONFIG)
    group = {"params": list(model.parameters()), "weight_decay": CONFIG.weight_decay}
    optimizer = made([group], **options)
    course = Course(model)
    for numbers in itertools.islice(_batches(rows), num_steps):
        synchronize(device)
        begun = time.perf_counter()
        batch = {name: tensor.to(device) for name, tensor in rows.batch(numbers).items()}
        labels = batch.pop("labels")
        loss = cross_entropy_sum(model(**batch).logits.float(), labels, None) / len(labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CONFIG.max_grad_norm)
        optimizer.step()
        course.losses.append(float(loss.detach()))
        synchronize(device)
        course.seconds.append(time.perf_counter() - begun)
    return course


def _encoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
    rows, _ = encode_rows(
        tokenizer,
        sentences(),
        LABELS,
        max_length=CONFIG.max_length,
        token_types=takes_token_types(model),
        num_embeddings=num_embeddings(model),
    )
    return rows


def _batches(rows: EncodedRows) -> Iterator[list[int]]:
    batches = EpochBatches(rows.lengths, CONFIG.batch_size, CONFIG.seed, bucketed=False)
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from batches


def _learnt(course: Course, device: torch.device) -> dict[str, Any]:
    losses = course.losses
    is_finite = all(math.isfinite(loss) for loss in losses)
    first, last = statistics.fmean(losses[:COMPARED_STEPS]), statistics.fmean(losses[-COMPARED_STEPS:])
    # The first step also makes what the others reuse.
    median_seconds = statistics.median(course.seconds[1:])
    peak, reason = _peak_bytes(device)
    return {
        "type": "training",
        "numParameters": num_parameters(course.model),
        "optimizer": CONFIG.optimizer,
        "batchSize": CONFIG.batch_size,
        "numSteps": len(losses),
        "losses": [_number(loss) for loss in losses],
        "firstLoss": _number(first),
        "lastLoss": _number(last),
        "isFinite": is_finite,
        "falls": is_finite and last < first,
        "medianStepSeconds": median_seconds,
        "firstStepSeconds": course.seconds[0],
        "samplesPerSecond": CONFIG.batch_size / median_seconds,
        "peakMemoryBytes": peak,
        "unmeasured": {"peakMemoryBytes": reason} if reason else {},
    }


def _reloaded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> dict[str, Any]:
    rows = _encoded(model, tokenizer)
    before = logits_of(model, rows, device)
    with tempfile.TemporaryDirectory(prefix="kargah-selftest-") as folder:
        begun = time.perf_counter()
        model.save_pretrained(folder)
        saved_seconds = time.perf_counter() - begun
        loaded, _ = load_trained(Path(folder))
    cast(nn.Module, loaded).to(device)
    after: NDArray[np.float32] = logits_of(loaded, rows, device)
    return {
        "type": "reload",
        "isIdentical": bool(np.array_equal(before, after)),
        "maxDifference": _number(float(np.abs(before - after).max())),
        "saveSeconds": saved_seconds,
    }


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "xpu":
        torch.xpu.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> tuple[int | None, str | None]:
    """The most memory that training took, or the reason why it is not known. On a CPU: of the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)), None
    if device.type == "xpu":
        return int(torch.xpu.max_memory_allocated(device)), None
    if device.type == "mps":
        return None, "MPS does not tell its peak"
    return peak_process_bytes(), None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Silence:
    """A sink that keeps nothing."""

    def append(self, type: str, *, durable: bool = False, **fields: Any) -> None:
        """Nothing."""
