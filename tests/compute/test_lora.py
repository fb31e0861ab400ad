"""Adapters: which layers take them, what trains, and that a checkpoint is a plain model and an exact resumption."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, RobertaConfig, set_seed

from kargah.compute.attempt import read_spec
from kargah.compute.classifier import load_folder
from kargah.compute.failures import Code, TrainingFailed
from kargah.compute.lora import adapt, adapted_names, head_names, load_adapter, merged_weights, save_adapted
from kargah.compute.model import load_trained, num_parameters
from kargah.spec.control import Outcome
from kargah.spec.layout import RunDir
from kargah.spec.manifest import read_manifest, write_manifest
from kargah.spec.run_spec import LoraConfig, ModelRef

from .architectures import ARCHITECTURES, SIZES, classifier_of
from .conftest import MakeRun
from .tiny import ListSink, attempt, sentences, tree_bytes


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    ids = torch.tensor([[2, 7, 9, 30, 3], [2, 11, 3, 1, 1]])
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids, attention_mask=(ids != 1).long()).logits
    return out


def shake(model: torch.nn.Module) -> None:
    """Give everything that trains some other value, as training would."""
    set_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_adapted_and_saved_as_a_plain_model(name: str, tmp_path: Path) -> None:
    config, targets, heads = ARCHITECTURES[name]
    model = classifier_of(config)
    model.save_pretrained(tmp_path / "base")
    before, frozen = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert sorted(head_names(model)) == sorted(heads)
    adapted = adapt(model, LoraConfig(rank=4, alpha=8.0), "org/base")
    names = adapted_names(model)
    assert sorted({name.rpartition(".")[2] for name in names}) == targets
    if name != "fnet":
        assert all("attention" in layer or "attn" in layer for layer in names)
    assert torch.equal(logits(model), before)  # nothing is learnt yet

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)
    assert {part.partition(".modules_to_save.")[0] for part in trained if ".lora_" not in part} == set(heads)

    shake(model)
    after = logits(model)
    assert not torch.allclose(after, before, atol=0.01)
    save_adapted(adapted, tmp_path / "saved")
    # The base did not change under the adapters by a single bit, and neither did what the model says.
    for key, tensor in model.state_dict().items():
        if ".lora_" not in key and ".modules_to_save." not in key:
            plain = key.replace(".base_layer.", ".").replace(".original_module.", ".")
            assert torch.equal(tensor, frozen[plain]), key
    assert torch.equal(logits(model), after)

    merged, told = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert num_parameters(merged) == num_parameters(classifier_of(config))
    torch.testing.assert_close(logits(merged), after, atol=1e-5, rtol=1e-5)

    by_peft = peft.PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), tmp_path / "saved" / "adapter"
    )
    torch.testing.assert_close(logits(by_peft), after, atol=1e-6, rtol=1e-6)
    again, _ = load_trained(tmp_path / "base")
    restored = adapt(again, LoraConfig(rank=4, alpha=8.0), "org/base")
    load_adapter(restored, tmp_path / "saved")
    assert torch.equal(logits(again), after)


def test_alpha_over_rank_scales_the_update_and_dropout_is_its_own() -> None:
    layer = "bert.encoder.layer.1.attention.self.query"
    deltas = {}
    for alpha in (4.0, 12.0):
        model = classifier_of(BertConfig(**SIZES))
        before = model.get_submodule(layer).weight.detach().clone()
        adapt(model, LoraConfig(rank=2, alpha=alpha, dropout=0.25, target_modules=["query"]), "b")
        adapter = model.get_submodule(layer)
        assert adapter.lora_A["default"].weight.shape == (2, 16)
        assert adapter.lora_dropout["default"].p == 0.25
        shake(model)
        with torch.no_grad():
            product = adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
        deltas[alpha] = merged_weights(model)[f"{layer}.weight"] - before
        torch.testing.assert_close(deltas[alpha], alpha / 2 * product, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas[12.0], 3 * deltas[4.0], atol=1e-4, rtol=1e-4)


def test_given_targets_are_matched_by_name_or_path_and_refused_when_nothing_is_called_so() -> None:
    model = classifier_of(RobertaConfig(**SIZES))
    adapt(model, LoraConfig(target_modules=["output.dense", "roberta.encoder.layer.0.attention.self.key"]), "b")
    assert adapted_names(model) == [
        "roberta.encoder.layer.0.attention.self.key",
        "roberta.encoder.layer.0.attention.output.dense",
        "roberta.encoder.layer.0.output.dense",
        "roberta.encoder.layer.1.attention.output.dense",
        "roberta.encoder.layer.1.output.dense",
    ]
    # `out_proj` stands in the head, `LayerNorm` is no linear layer, `uery` is no whole name.
    for wrong in ("q_proj", "out_proj", "LayerNorm", "uery"):
        with pytest.raises(TrainingFailed) as caught:
            adapt(classifier_of(RobertaConfig(**SIZES)), LoraConfig(target_modules=["query", wrong]), "b")
        assert caught.value.code is Code.SPEC_INVALID
        assert caught.value.params == {
            "field": "lora.targetModules", "target": wrong, "available": ["dense", "key", "query", "value"],
        }  # fmt: skip


# 90 rows in batches of 4 are 23 batches; accumulated by 3 they are 8 steps, the last of 2 batches.
CONFIG: dict[str, Any] = {
    "lora": LoraConfig(rank=4, alpha=8.0, dropout=0.1),
    "max_steps": 20,
    "batch_size": 4,
    "gradient_accumulation_steps": 3,
    "learning_rate": 1e-2,
    "weight_decay": 0.01,
    "log_every_steps": 5,
    "eval_every_steps": 6,
    "checkpoint_every_steps": 100,
    "warmup_steps": 3,
}
FILES = ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "optimizer.pt",
         "scheduler.pt", "rng_state.pth")  # fmt: skip


@pytest.fixture(scope="module")
def straight(make_run: MakeRun) -> tuple[RunDir, ListSink]:
    run_dir = make_run(**CONFIG)
    return run_dir, attempt(run_dir)[1]


def told(*sinks: ListSink) -> list[tuple[Any, ...]]:
    """Losses, norms, rates and evaluations in their order."""
    records = [record for sink in sinks for record in sink.records if record["type"] in ("metric", "evaluation")]
    names = ("step", "loss", "gradNorm", "learningRate", "valLoss", "accuracy")
    return [tuple(record.get(name) for name in names) for record in records]


LEARNING: dict[str, Any] = {
    "lora": LoraConfig(rank=8, alpha=16.0), "dropout": 0.0, "batch_size": 16, "max_steps": 60, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def learnt(make_run: MakeRun) -> ListSink:
    return attempt(make_run(**LEARNING))[1]


def test_adapters_learn(learnt: ListSink) -> None:
    losses = list(learnt.losses().values())
    assert losses[-1] < 0.2 * losses[0]
    assert learnt.of("evaluation")[-1]["accuracy"] > 0.9


def test_nothing_trains_but_adapters_and_head(
    make_run: MakeRun, straight: tuple[RunDir, ListSink], base_model: Path
) -> None:
    run_dir, sink = straight
    (started,) = sink.of("started")
    (loaded,) = [record["details"] for record in sink.of("log") if record["key"] == "modelLoaded"]
    # Rank 4 on four 32 × 32 layers of two blocks, the pooler, and a head of two classes.
    trained = 2 * 4 * (4 * 32 + 32 * 4) + (32 * 32 + 32) + (2 * 32 + 2)
    whole = num_parameters(AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=2))
    assert (started["numParameters"], started["numTrainableParameters"]) == (whole, trained)
    assert (loaded["numParameters"], loaded["numTrainableParameters"]) == (whole, trained)

    base = load_file(base_model / "model.safetensors")
    saved = load_file(run_dir.checkpoints / "step-00000020" / "model.safetensors")
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, saved[f"bert.{name}"])}
    assert changed
    assert all(".attention." in name or name.startswith("pooler.") for name in changed)
    assert not any("bias" in name or "LayerNorm" in name for name in changed if ".attention." in name)
    optimizer = torch.load(run_dir.checkpoints / "step-00000020" / "optimizer.pt", weights_only=True)
    # Moments for what trains, and for nothing else.
    assert sum(state["exp_avg"].numel() for state in optimizer["state"].values()) == trained
    assert attempt(make_run(max_steps=1))[1].of("started")[0]["numTrainableParameters"] == whole


def test_checkpoint_loads_plainly_and_says_what_the_run_said(straight: tuple[RunDir, ListSink], dataset: Any) -> None:
    run_dir, sink = straight
    folder = run_dir.checkpoints / "step-00000020"
    texts, _ = sentences(30, 2)
    plain = load_folder(folder)
    spec = read_spec(run_dir)
    base = AutoModelForSequenceClassification.from_pretrained(spec.base_model.path, num_labels=2)
    adapted = replace(plain, model=peft.PeftModel.from_pretrained(base, folder / "adapter").eval().get_base_model())
    np.testing.assert_allclose(plain.logits(texts), adapted.logits(texts), atol=1e-5)
    assert set(read_manifest(folder)["files"]) >= set(FILES)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("tiny", 4, 8.0)
    assert sink.of("evaluation")[-1]["step"] == 20


# In the middle of an epoch inside a logging window, and at the end of an epoch.
@pytest.mark.parametrize("paused_at", [3, 8])
def test_pause_and_resume_equal_running_straight(
    make_run: MakeRun, straight: tuple[RunDir, ListSink], paused_at: int
) -> None:
    run_dir = make_run(**CONFIG)
    ending, first = attempt(run_dir, 1, end_after_step=paused_at)
    assert ending.outcome is Outcome.PAUSED
    _, second = attempt(run_dir, 2)
    assert told(first, second) == told(straight[1])
    last = "step-00000020"
    assert tree_bytes(run_dir.checkpoints / last, *FILES) == tree_bytes(straight[0].checkpoints / last, *FILES)


def test_restored_run_continues_as_the_first_did(make_run: MakeRun, straight: tuple[RunDir, ListSink]) -> None:
    first = make_run(**CONFIG)
    _, before = attempt(first, 1, end_after_step=7)
    restored = make_run(**CONFIG, spec={"resume_from": str(first.checkpoints / "step-00000007")})
    _, after = attempt(restored)
    assert told(before, after) == told(straight[1])


def test_a_checkpoint_as_base_is_resumed_bit_for_bit(make_run: MakeRun, trained: RunDir) -> None:
    base = {"base_model": ModelRef("c", str(trained.checkpoints / "step-00000060"), "checkpoint")}
    options = {**CONFIG, "max_steps": 6, "learning_rate": 1e-3, "log_every_steps": 1, "spec": base}
    whole, run_dir = make_run(**options), make_run(**options)
    _, straight = attempt(whole)
    _, first = attempt(run_dir, 1, end_after_step=4)
    _, second = attempt(run_dir, 2)
    assert straight.losses()[1] < 0.2  # the head came along
    assert told(first, second) == told(straight)
    last = "step-00000006"
    assert tree_bytes(run_dir.checkpoints / last, *FILES) == tree_bytes(whole.checkpoints / last, *FILES)
    # And an adapted checkpoint is a base, and a teacher, as any other.
    adapted = ModelRef("a", str(whole.checkpoints / last), "checkpoint")
    _, sink = attempt(make_run(max_steps=1, log_every_steps=1, spec={"base_model": adapted, "teacher_model": adapted}))
    assert sink.losses()[1] < 0.2


def test_adapters_of_another_rank_are_not_taken_for_these(make_run: MakeRun) -> None:
    run_dir = make_run(**{**CONFIG, "max_steps": 2})
    attempt(run_dir)
    folder = str(run_dir.checkpoints / "step-00000002")
    other = {**CONFIG, "lora": LoraConfig(rank=2)}
    with pytest.raises(TrainingFailed) as caught:
        attempt(make_run(**other, spec={"resume_from": folder}))
    assert caught.value.code is Code.MODEL_DAMAGED
    assert caught.value.params == {"file": "adapter/adapter_model.safetensors"}
    path = Path(folder) / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)
    write_manifest(Path(folder), step=2)
    with pytest.raises(TrainingFailed, match="other adapters"):
        attempt(make_run(**CONFIG, spec={"resume_from": folder}))


def test_accumulation_is_the_same_as_a_larger_batch(make_run: MakeRun) -> None:
    options = {"lora": LoraConfig(rank=4), "dropout": 0.0, "max_steps": 6, "log_every_steps": 1}
    _, large = attempt(make_run(**options, batch_size=8))
    _, small = attempt(make_run(**options, batch_size=2, gradient_accumulation_steps=4))
    assert list(small.losses().values()) == pytest.approx(list(large.losses().values()), abs=1e-5)


def test_distillation_goes_through_the_adapters(make_run: MakeRun, trained: RunDir, learnt: ListSink) -> None:
    teacher = ModelRef("t", str(trained.checkpoints / "step-00000060"), "checkpoint")
    _, sink = attempt(make_run(**LEARNING, distillation_alpha=1.0, spec={"teacher_model": teacher}))
    losses = list(sink.losses().values())
    assert losses[-1] < 0.3 * losses[0]
    assert losses[0] != pytest.approx(learnt.losses()[2], rel=0.01)


def test_early_stopping_gives_back_the_best_adapted_model(make_run: MakeRun) -> None:
    run_dir = make_run(
        lora=LoraConfig(rank=8, alpha=16.0),
        max_steps=300,
        learning_rate=0.08,  # learns, then thrashes
        lr_scheduler="constant",
        eval_every_steps=3,
        enable_early_stopping=True,
        early_stopping_patience=3,
        keep_checkpoints=1,
    )
    ending, sink = attempt(run_dir)
    best = max(sink.of("evaluation"), key=lambda record: (record["accuracy"], -record["valLoss"]))
    assert ending.step < 300
    assert ending.step > best["step"]
    assert ending.best_checkpoint == f"step-{best['step']:08d}"
    stored = AutoModelForSequenceClassification.from_pretrained(run_dir.checkpoints / ending.best_checkpoint)
    given_back = ending.model.state_dict()
    assert given_back.keys() == stored.state_dict().keys()
    assert all(torch.equal(tensor, given_back[name]) for name, tensor in stored.state_dict().items())


@pytest.mark.parametrize(
    ("config", "code", "field"),
    [
        ({"lora": LoraConfig(rank=0)}, Code.SPEC_INVALID, "lora.rank"),
        ({"lora": LoraConfig(alpha=0.0)}, Code.SPEC_INVALID, "lora.alpha"),
        ({"lora": LoraConfig(dropout=1.0)}, Code.SPEC_INVALID, "lora.dropout"),
        ({"lora": LoraConfig(target_modules=[])}, Code.SPEC_INVALID, "lora.targetModules"),
        ({"lora": LoraConfig(target_modules=["q_lin"])}, Code.SPEC_INVALID, "lora.targetModules"),
        ({"lora": LoraConfig(), "vocabulary": "fa"}, Code.NOT_SUPPORTED, "vocabulary"),
        ({"lora": LoraConfig(), "embedding_learning_rate": 1e-3}, Code.NOT_SUPPORTED, "embeddingLearningRate"),
    ],
)
def test_what_adapters_cannot_be_is_refused_with_its_field(
    make_run: MakeRun, config: dict[str, Any], code: Code, field: str
) -> None:
    with pytest.raises(TrainingFailed) as caught:
        attempt(make_run(**config))
    assert (caught.value.code, caught.value.params["field"]) == (code, field)
