"""Every failure has its code, and says whether another attempt can help."""

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kargah.compute.attempt import Progress, read_spec, run_attempt
from kargah.compute.failures import Code, Interrupted, TrainingFailed, exit_of
from kargah.compute.wishes import Wishes
from kargah.spec.control import Outcome, Wish, write_wish
from kargah.spec.layout import write_json
from kargah.spec.manifest import write_manifest
from kargah.spec.run_spec import DatasetRef, ModelRef, SpecError

from .conftest import MakeRun
from .tiny import ListSink, attempt, sentences, write_split


def failure(make_run: MakeRun, **options: Any) -> TrainingFailed:
    with pytest.raises(TrainingFailed) as caught:
        attempt(make_run(**options))
    return caught.value


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"optimizer": "lion"}, "optimizer"),
        ({"lr_scheduler": "wild"}, "lrScheduler"),
        ({"mixed_precision": "fp8"}, "mixedPrecision"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_field(make_run: MakeRun, config: dict[str, Any], field: str) -> None:
    error = failure(make_run, **config)
    assert (error.code, error.params) == (Code.NOT_SUPPORTED, {"field": field})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16")
def test_half_precision_that_is_only_emulated_is_refused(make_run: MakeRun) -> None:
    assert failure(make_run, mixed_precision="fp16").code is Code.NOT_SUPPORTED


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"batch_size": 0}, "batchSize"),
        ({"max_steps": 0}, "maxSteps"),
        ({"learning_rate": 0.0}, "learningRate"),
        ({"validation_split": 1.0}, "validationSplit"),
        ({"distillation_alpha": 1.5}, "distillationAlpha"),
        ({"max_grad_norm": -1.0}, "maxGradNorm"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"early_stopping_patience": 0}, "earlyStoppingPatience"),
        ({"distillation_temperature": 0.0}, "distillationTemperature"),
    ],
)
def test_values_out_of_range_are_refused_with_their_field(
    make_run: MakeRun, config: dict[str, Any], field: str
) -> None:
    error = failure(make_run, **config)
    assert (error.code, error.params) == (Code.SPEC_INVALID, {"field": field})


def test_loss_that_is_not_finite_is_recorded_and_ends_the_run(
    make_run: MakeRun, base_model: Path, tmp_path: Path
) -> None:
    for path in base_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    run_dir = make_run(spec={"base_model": ModelRef("broken", str(tmp_path))})
    sink, progress = ListSink(), Progress()
    with pytest.raises(TrainingFailed) as caught:
        run_attempt(run_dir, 1, sink, Wishes(run_dir.control), progress)
    assert caught.value.code is Code.NON_FINITE_LOSS
    assert caught.value.params == {"step": 1}
    assert not caught.value.retryable
    (metric,) = sink.of("metric")
    assert metric["step"] == progress.step == 1
    assert metric["loss"] != metric["loss"]
    assert not sink.of("checkpoint")


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _lose_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _break_manifest(folder: Path) -> None:
    write_manifest(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def _only_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_cut_weights, Code.MODEL_DAMAGED),
        (_lose_a_layer, Code.MODEL_DAMAGED),
        (_break_manifest, Code.MODEL_DAMAGED),
        (_only_pickle, Code.MODEL_DAMAGED),
        (lambda folder: (folder / "config.json").write_text("{"), Code.MODEL_DAMAGED),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), Code.TOKENIZER_DAMAGED),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), Code.TOKENIZER_DAMAGED),
        (lambda folder: (folder / "tokenizer.json").unlink(), Code.TOKENIZER_DAMAGED),
    ],
)
def test_damaged_model_folder(
    make_run: MakeRun, base_model: Path, tmp_path: Path, damage: Callable[[Path], object], code: Code
) -> None:
    for path in base_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path)
    error = failure(make_run, spec={"base_model": ModelRef("broken", str(tmp_path))})
    assert error.code is code
    assert not error.retryable


def test_tokenizer_of_another_model_is_noticed(make_run: MakeRun, base_model: Path, tmp_path: Path) -> None:
    for path in base_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(base_model)
    config.vocab_size = 20
    BertModel(config).save_pretrained(tmp_path)
    error = failure(make_run, spec={"base_model": ModelRef("mixed", str(tmp_path))})
    assert error.code is Code.TOKENIZER_DAMAGED


def _dataset(folder: Path, rows: dict[str, list[Any]], **more: Any) -> dict[str, Any]:
    write_split(folder, "train", rows)
    return {"datasets": [DatasetRef("d", str(folder), "v1", {"text": "text", "label": "label"}, **more)]}


def test_data_that_cannot_be_trained_on(make_run: MakeRun, tmp_path: Path) -> None:
    texts, labels = sentences(12)
    good = {"text": texts, "label": labels}
    cases: list[tuple[dict[str, Any], Code, dict[str, Any]]] = [
        (_dataset(tmp_path / "a", {"text": [], "label": []}), Code.EMPTY_DATA, {}),
        (_dataset(tmp_path / "b", {"متن": texts, "label": labels}), Code.COLUMN_NOT_FOUND, {"column": "text"}),
        (_dataset(tmp_path / "c", {"text": texts, "label": ["یکی"] * 12}), Code.SINGLE_CLASS, {"label": "یکی"}),
        (_dataset(tmp_path / "d", good, labels=["یکی", labels[0]]), Code.UNKNOWN_LABEL, {}),
    ]
    for spec, code, params in cases:
        error = failure(make_run, spec=spec)
        assert error.code is code
        assert params.items() <= error.params.items()
    write_split(tmp_path / "e", "validation", {"text": texts, "label": ["تازه"] * 12})
    error = failure(make_run, spec=_dataset(tmp_path / "e", good))
    assert (error.code, error.params) == (Code.UNKNOWN_LABEL, {"label": "تازه"})
    spec = _dataset(tmp_path / "f", good)
    (tmp_path / "f" / "train.parquet").write_bytes(b"PAR1 no more")
    assert failure(make_run, spec=spec).code is Code.DATA_DAMAGED
    spec = _dataset(tmp_path / "g", good)
    write_manifest(tmp_path / "g")
    write_split(tmp_path / "g", "train", {"text": texts[:6], "label": labels[:6]})
    assert failure(make_run, spec=spec).code is Code.DATA_DAMAGED
    spec = _dataset(tmp_path / "h", good)
    (tmp_path / "h" / "train.parquet").unlink()
    assert failure(make_run, spec=spec).code is Code.DATA_DAMAGED


def test_wish_before_the_first_step_ends_the_attempt_at_once(make_run: MakeRun) -> None:
    run_dir = make_run()
    write_wish(run_dir.control, 1, Wish.STOP)
    with pytest.raises(Interrupted) as caught:
        attempt(run_dir)
    assert exit_of(caught.value, 0).outcome is Outcome.STOPPED


def test_broken_control_file_changes_nothing(make_run: MakeRun) -> None:
    run_dir = make_run(max_steps=2)
    run_dir.control.write_text('{"seq": 1, "wish": "dance"}')
    assert attempt(run_dir)[0].step == 2


def test_spec_that_is_none(make_run: MakeRun) -> None:
    run_dir = make_run()
    value = json.loads(run_dir.spec.read_text(encoding="utf-8"))
    del value["baseModel"]
    write_json(run_dir.spec, value)
    with pytest.raises(SpecError) as caught:
        attempt(run_dir)
    ended = exit_of(caught.value, 0)
    assert (ended.error, ended.params, ended.retryable) == ("SPEC_INVALID", {"field": "spec.baseModel"}, False)
    run_dir.spec.write_text("{")
    with pytest.raises(TrainingFailed):
        read_spec(run_dir)


def _raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL", True),
        (_raised(ValueError("wrapped"), OSError(errno.ENOSPC, "full")), "DISK_FULL", True),
        (
            RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"),
            "DISK_FULL",
            True,
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "DISK_FULL", True),
        (MemoryError(), "OUT_OF_MEMORY", True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "OUT_OF_MEMORY", True),
        (KeyError("x"), "INTERNAL", True),
        (TrainingFailed(Code.SINGLE_CLASS, "one label", label="a"), "SINGLE_CLASS", False),
    ],
)
def test_errors_become_exits(error: BaseException, code: str, retryable: bool) -> None:
    ended = exit_of(error, 12)
    assert (ended.outcome, ended.step, ended.error, ended.retryable) == (Outcome.FAILED, 12, code, retryable)
    assert ended.detail is not None
    assert "\n" not in ended.detail


def test_early_stopping_without_validation_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    texts, labels = sentences(12)
    spec = _dataset(tmp_path, {"text": texts, "label": labels})
    error = failure(make_run, spec=spec, validation_split=0.0, enable_early_stopping=True)
    assert (error.code, error.params) == (Code.SPEC_INVALID, {"field": "enableEarlyStopping"})


def test_two_kinds_of_data_sets_do_not_mix(make_run: MakeRun, dataset: DatasetRef, tmp_path: Path) -> None:
    texts, labels = sentences(12)
    write_split(tmp_path, "train", {"text": texts, "label": labels, "pair": texts})
    pairs = DatasetRef("p", str(tmp_path), "v1", {"text": "text", "textPair": "pair", "label": "label"})
    error = failure(make_run, spec={"datasets": [dataset, replace(pairs)]})
    assert error.code is Code.SPEC_INVALID
