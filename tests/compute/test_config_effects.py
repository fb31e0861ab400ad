"""Every other value of the config by its effect on a run; optimizers and schedules stand in a file of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from kargah.compute import hardware
from kargah.compute.arguments import plan_steps, training_arguments
from kargah.compute.checkpoints import list_checkpoints
from kargah.compute.classifier import load_folder
from kargah.compute.dropout import dropout_fields, override_dropout
from kargah.compute.failures import Code, TrainingFailed
from kargah.compute.hardware import Hardware
from kargah.compute.model import load_classifier, load_tokenizer
from kargah.compute.sink import Log
from kargah.spec.control import Outcome
from kargah.spec.layout import RunDir
from kargah.spec.run_spec import DatasetRef, LoraConfig, ModelRef, TrainConfig

from .architectures import ARCHITECTURES, classifier_of
from .conftest import MakeRun
from .tiny import ListSink, attempt, sentences, write_split

ALL_ROWS = {"batch_size": 90, "max_steps": 1, "log_every_steps": 1}


def own_data(folder: Path, texts: list[str], labels: list[str], **more: Any) -> dict[str, Any]:
    """A spec's data set without validation rows."""
    write_split(folder, "train", {"text": texts, "label": labels, **more})
    return {"datasets": [DatasetRef(folder.name, str(folder), "v1", {"text": "text", "label": "label"})]}


# -- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "llama"])  # it has none but of attention
def test_dropout_of_every_architecture_is_the_given_one(
    name: str, probability: float, tmp_path: Path, base_model: Path
) -> None:
    classifier_of(ARCHITECTURES[name][0]).save_pretrained(tmp_path)
    fields = dropout_fields(AutoConfig.from_pretrained(tmp_path))
    assert fields
    model = load_classifier(tmp_path, ["a", "b", "c"], load_tokenizer(base_model), Log(ListSink()), dropout=probability)
    assert {getattr(model.config, field) for field in fields} == {probability}
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} <= {probability}
    ids = torch.randint(2, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    model.train()
    one, other = model(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.equal(one, other) is (probability == 0.0)


def test_dropout_set_by_the_code_of_a_model_is_overridden_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3), nn.Dropout1d(0.2))
    override_dropout(model, 0.0)
    assert [module.p for module in model[1:]] == [0.0, 0.0]


def test_dropout_of_a_run_is_kept_over_a_pause_and_none_is_the_models_own(make_run: MakeRun, plain_model: Path) -> None:
    options = {"max_steps": 4, "log_every_steps": 1}
    own = attempt(make_run(**options))[1].losses()
    without_run = make_run(**options, dropout=0.0)
    without = attempt(without_run)[1].losses()
    made_without = attempt(make_run(**options, spec={"base_model": ModelRef("p", str(plain_model))}))[1].losses()
    assert without == made_without != own
    assert attempt(make_run(**options, dropout=0.1))[1].losses() == own  # what BERT has by itself
    strong = make_run(**options, dropout=0.5)
    _, first = attempt(strong, 1, end_after_step=2)
    _, second = attempt(strong, 2)
    straight = attempt(make_run(**options, dropout=0.5))[1].losses()
    assert {**first.losses(), **second.losses()} == straight
    assert straight not in (own, without)
    config = AutoConfig.from_pretrained(without_run.checkpoints / "step-00000004")
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.classifier_dropout) == (0, 0, 0)


# -- mixed precision --------------------------------------------------------------------------------------------------


@contextmanager
def types_of_linear_layers() -> Iterator[set[torch.dtype]]:
    """Every type of number that a linear layer gave inside."""
    seen: set[torch.dtype] = set()

    def look(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, torch.Tensor):
            seen.add(output.dtype)

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, lora: LoraConfig | None
) -> None:
    options = {"lora": lora, "max_steps": 3, "log_every_steps": 1, "dropout": 0.0}
    with types_of_linear_layers() as seen:
        _, exact = attempt(make_run(**options))
    assert seen == {torch.float32}
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: True)
    run_dir = make_run(**options, mixed_precision="bf16")
    with types_of_linear_layers() as seen:
        _, first = attempt(run_dir, 1, end_after_step=2)
        _, second = attempt(run_dir, 2)
    assert seen == {torch.bfloat16}
    losses = {**first.losses(), **second.losses()}
    assert losses != exact.losses()
    assert list(losses.values()) == pytest.approx(list(exact.losses().values()), rel=0.02)
    assert losses == attempt(make_run(**options, mixed_precision="bf16"))[1].losses()
    weights = load_file(run_dir.checkpoints / "step-00000003" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has both")
@pytest.mark.parametrize(("precision", "reason"), [("bf16", "no native bfloat16"), ("fp16", "needs a GPU")])
def test_half_precision_is_refused_where_it_is_not_native(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, precision: str, reason: str
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: False)
    with pytest.raises(TrainingFailed, match=reason) as caught:
        attempt(make_run(mixed_precision=precision))
    assert (caught.value.code, caught.value.params) == (Code.NOT_SUPPORTED, {"field": "mixedPrecision"})


def test_fp16_reaches_the_trainer_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = hardware.prepare_hardware("fp16").device
    assert device.type == "cuda"
    monkeypatch.undo()
    config = TrainConfig(mixed_precision="fp16")
    arguments = training_arguments(config, plan_steps(config, 90), Hardware(device, 1), tmp_path)
    assert (arguments.fp16, arguments.bf16) == (True, False)


# -- batches, lengths, seeds ------------------------------------------------------------------------------------------


def test_max_length_cuts_what_is_behind_it(make_run: MakeRun, tmp_path: Path, steady: ModelRef) -> None:
    texts, labels = sentences(40, 5)
    tails, _ = sentences(40, 6)
    lengths = [len(tokens) for tokens in load_tokenizer(Path(steady.path))(texts)["input_ids"]]
    longest, cut_at = max(lengths), min(lengths) - 1

    def run(name: str, given: list[str], max_length: int) -> ListSink:
        spec = {**own_data(tmp_path / name, given, labels), "base_model": steady}
        options = {"validation_split": 0.0, "max_steps": 2, "log_every_steps": 1}
        return attempt(make_run(spec=spec, max_length=max_length, **options))[1]

    (facts,) = [r["details"] for r in run("a", texts, cut_at).of("log") if r["key"] == "trainTokenised"]
    assert (facts["maxLength"], facts["meanLength"], facts["truncatedShare"]) == (cut_at, cut_at, 1.0)
    longer = [f"{text} {tail}" for text, tail in zip(texts, tails, strict=True)]
    assert run("b", longer, cut_at - 1).losses() == run("c", texts, cut_at - 1).losses()
    assert run("d", longer, longest + 4).losses() != run("e", texts, longest + 4).losses()


def test_seed_decides_everything_that_is_drawn(make_run: MakeRun, steady: ModelRef) -> None:
    options = {"max_steps": 3, "log_every_steps": 1}
    first, again, other = (attempt(make_run(**options, seed=seed))[1].losses() for seed in (5, 5, 6))
    assert first == again
    assert not set(first.values()) & set(other.values())
    # The head alone: one batch of all rows, without dropout.
    by_head = [attempt(make_run(**ALL_ROWS, dropout=0.0, seed=seed))[1].losses()[1] for seed in (5, 6)]
    assert abs(by_head[0] - by_head[1]) > 1e-3
    # The order of the rows alone, where neither a head nor dropout is drawn.
    by_order = [attempt(make_run(**options, spec={"base_model": steady}, seed=seed))[1].losses() for seed in (5, 6)]
    assert by_order[0] != by_order[1]


def test_batch_size_and_batching_make_the_batches(make_run: MakeRun, steady: ModelRef) -> None:
    spec = {"base_model": steady}
    for size, steps in ((7, 13), (90, 1), (1000, 1)):
        ending, sink = attempt(make_run(spec=spec, batch_size=size, max_steps=None, epochs=1.0))
        assert ending.step == sink.of("started")[0]["totalSteps"] == steps
    random, bucketed = (attempt(make_run(spec=spec, batching=batching))[1] for batching in ("random", "bucketed"))
    assert random.losses() != bucketed.losses()


@pytest.mark.parametrize(
    ("config", "steps"), [({"epochs": 0.25}, 3), ({"epochs": 1.6}, 20), ({"epochs": 9.0, "max_steps": 2}, 2)]
)
def test_epochs_and_max_steps(make_run: MakeRun, config: dict[str, Any], steps: int) -> None:
    ending, sink = attempt(make_run(**{"max_steps": None, **config}))
    assert ending.step == steps  # of 12 an epoch
    assert sink.of("metric")[-1]["epoch"] == pytest.approx(steps / 12)


# -- cadence, checkpoints, early stopping -----------------------------------------------------------------------------


def steps_of(sink: ListSink, type: str) -> list[int]:
    return [record["step"] for record in sink.of(type)]


def folders(run_dir: RunDir) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run_dir.checkpoints)]


@pytest.mark.parametrize(("keep", "left"), [(0, [11]), (1, [11]), (2, [10, 11]), (9, [5, 10, 11])])
def test_steps_of_logs_and_checkpoints_are_exactly_those_asked_for(
    make_run: MakeRun, tmp_path: Path, keep: int, left: list[int]
) -> None:
    spec = own_data(tmp_path, *sentences(30))
    options = {"max_steps": 11, "log_every_steps": 3, "checkpoint_every_steps": 5, "keep_checkpoints": keep}
    run_dir = make_run(spec=spec, validation_split=0.0, **options)
    _, sink = attempt(run_dir)
    assert steps_of(sink, "metric") == [3, 6, 9, 11]
    assert steps_of(sink, "checkpoint") == [5, 10, 11]
    assert folders(run_dir) == left


@pytest.mark.parametrize(("every", "expected"), [(4, [4, 8, 12, 16, 20, 24, 26]), (None, [12, 24, 26])])
def test_evaluations_come_when_asked_for_and_the_best_of_them_is_kept(
    make_run: MakeRun, every: int | None, expected: list[int]
) -> None:
    run_dir = make_run(max_steps=26, eval_every_steps=every, checkpoint_every_steps=9, keep_checkpoints=1)
    ending, sink = attempt(run_dir)
    assert steps_of(sink, "evaluation") == expected
    better, best = set(), (-1.0, 0.0)
    for record in sink.of("evaluation"):
        rank = (record["accuracy"], -record["valLoss"])
        if rank > best:
            better.add(record["step"])
            best, best_step = rank, record["step"]
    assert steps_of(sink, "checkpoint") == sorted(better | {9, 18, 26})
    assert folders(run_dir) == sorted({best_step, 26})
    assert ending.best_checkpoint == f"step-{best_step:08d}"


@pytest.mark.parametrize(("threshold", "steps"), [(1e9, 8), (0.0, 20)])
def test_early_stopping_counts_evaluations_that_are_not_better_by_the_threshold(
    make_run: MakeRun, threshold: float, steps: int
) -> None:
    """The first evaluation is what the others are held against; three that are no better end the run."""
    options = {"max_steps": 20, "learning_rate": 5e-3, "dropout": 0.0, "eval_every_steps": 2, "batch_size": 45}
    stopping = {"enable_early_stopping": True, "early_stopping_patience": 3, "early_stopping_threshold": threshold}
    run_dir = make_run(**options, **stopping)
    ending, sink = attempt(run_dir)
    assert (ending.outcome, ending.step) == (Outcome.COMPLETED, steps)
    assert ("early stop" in sink.messages()) is (steps < 20)
    stored = load_file(run_dir.checkpoints / str(ending.best_checkpoint) / "model.safetensors")
    assert all(torch.equal(tensor, ending.model.state_dict()[name]) for name, tensor in stored.items())
    ending, _ = attempt(make_run(**options, **stopping | {"enable_early_stopping": False}))
    assert ending.step == 20


# -- distillation -----------------------------------------------------------------------------------------------------


def divergence(teacher: np.ndarray[Any, Any], student: np.ndarray[Any, Any], temperature: float) -> float:
    def softened(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        exponents = np.exp(logits.astype(np.float64) / temperature)
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))

    p, q = softened(teacher), softened(student)
    return float((p * np.log(p / q)).sum(axis=1).mean())


def test_distillation_by_its_formula(make_run: MakeRun, steady: ModelRef, trained: RunDir) -> None:
    teacher = ModelRef("t", str(trained.checkpoints / "step-00000060"), "checkpoint")
    texts, labels = sentences(90, 1)
    judge, student = load_folder(Path(teacher.path)), load_folder(Path(steady.path))
    assert judge.labels == student.labels
    numbers = [student.labels.index(label) for label in labels]
    cross_entropy = -float(np.log(student.probabilities(texts)[np.arange(90), numbers]).mean())
    for alpha, temperature in ((0.0, 2.0), (0.3, 1.0), (0.5, 2.0), (1.0, 4.0)):
        options = {"distillation_alpha": alpha, "distillation_temperature": temperature}
        _, sink = attempt(make_run(spec={"base_model": steady, "teacher_model": teacher}, **ALL_ROWS, **options))
        soft = temperature**2 * divergence(judge.logits(texts), student.logits(texts), temperature)
        assert sink.losses()[1] == pytest.approx(alpha * soft + (1 - alpha) * cross_entropy, rel=1e-4)


def test_with_alpha_one_the_labels_say_nothing(
    make_run: MakeRun, tmp_path: Path, steady: ModelRef, trained: RunDir
) -> None:
    teacher = ModelRef("t", str(trained.checkpoints / "step-00000060"), "checkpoint")
    texts, labels = sentences(40, 7)
    wrong = labels[1:] + labels[:1]

    def losses(name: str, given: list[str], alpha: float) -> dict[int, float]:
        spec = {**own_data(tmp_path / name, texts, given), "base_model": steady, "teacher_model": teacher}
        options = {"max_steps": 3, "log_every_steps": 1, "validation_split": 0.0, "distillation_alpha": alpha}
        return attempt(make_run(spec=spec, **options))[1].losses()

    assert losses("a", labels, 1.0) == losses("b", wrong, 1.0)
    assert losses("c", labels, 0.9) != losses("d", wrong, 0.9)


# -- data -------------------------------------------------------------------------------------------------------------


def test_columns_of_the_config_win_over_the_data_sets_own(make_run: MakeRun, tmp_path: Path) -> None:
    texts, labels = sentences(30)
    spec = own_data(tmp_path, texts, labels, other=["یک" if n % 3 else "دو" for n in range(30)])
    _, own = attempt(make_run(spec=spec, max_steps=1))
    _, told = attempt(make_run(spec=spec, max_steps=1, columns={"label": "other"}))
    assert own.of("started")[0]["labels"] == sorted(set(labels))
    assert told.of("started")[0]["labels"] == sorted(["یک", "دو"])


def test_several_data_sets_train_together_over_all_their_labels(make_run: MakeRun, tmp_path: Path) -> None:
    texts, labels = sentences(30)
    one = own_data(tmp_path / "one", texts, labels)["datasets"][0]
    other = own_data(tmp_path / "other", texts[:20], ["سوم" if n % 2 else labels[0] for n in range(20)])["datasets"][0]
    run_dir = make_run(spec={"datasets": [one, other]}, max_steps=2, validation_split=0.0)
    ending, sink = attempt(run_dir)
    (started,) = sink.of("started")
    assert started["labels"] == sorted({*labels, "سوم"})
    assert started["numTrainRows"] == 50
    assert ending.model.config.num_labels == 3
    for dataset, num_rows in ((one, 30), (other, 20)):
        alone = make_run(spec={"datasets": [replace(dataset)]}, max_steps=1, validation_split=0.0)
        assert attempt(alone)[1].of("started")[0]["numTrainRows"] == num_rows


def test_a_checkpoint_is_a_base_that_knows_its_task(make_run: MakeRun, trained: RunDir) -> None:
    base = ModelRef("c", str(trained.checkpoints / "step-00000060"), "checkpoint")
    options = {**ALL_ROWS, "dropout": 0.0}
    _, knowing = attempt(make_run(spec={"base_model": base}, **options))
    _, fresh = attempt(make_run(**options))
    assert knowing.losses()[1] < 0.1 < 0.5 < fresh.losses()[1]
    model = AutoModelForSequenceClassification.from_pretrained(base.path)
    assert knowing.of("started")[0]["numParameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("made", "share", "expected"), [
    (True, 0.3, 36), (True, None, 30), (False, 0.3, 30), (True, 0.0, 0),
])  # fmt: skip
def test_validation_split_of_a_run(
    make_run: MakeRun, dataset: DatasetRef, made: bool, share: float | None, expected: int
) -> None:
    """120 rows, of which the data set holds back 30: given so, or divided off by its import."""
    spec = {"datasets": [replace(dataset, validation_made=made)]}
    _, sink = attempt(make_run(spec=spec, validation_split=share, max_steps=1))
    (started,) = sink.of("started")
    assert started["numValidationRows"] == pytest.approx(expected, abs=3 if share and made else 0)
    assert started["numTrainRows"] + started["numValidationRows"] == 120
    assert len(sink.of("evaluation")) == (expected > 0)
    assert ("respected" in sink.messages()) is (share is not None and not made)
