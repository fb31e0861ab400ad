"""Pickled weights become safetensors; a pickle that wants to run something does not."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    set_seed,
)

from kargah.compute.convert import main

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
INPUTS = torch.tensor([[2, 7, 9, 3]])


def pickled(folder: Path, model: Any, *, legacy: bool = False) -> Path:
    """A model folder as it was made years ago: config and a pickle, tied tensors sharing their memory."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    return folder


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(list(arguments))
    (line,) = capsys.readouterr().out.splitlines()
    return code, json.loads(line)


@pytest.mark.parametrize("legacy", [False, True])
def test_tied_weights_load_again_and_give_the_same_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], legacy: bool
) -> None:
    set_seed(1)
    model = BertForMaskedLM(BertConfig(**CONFIG)).eval()
    pickled(tmp_path, model, legacy=legacy)
    code, said = answer(capsys, str(tmp_path))
    target = tmp_path / "model.safetensors"
    assert code == 0
    assert said == {"converted": ["pytorch_model.bin"], "file": target.name, "sizeBytes": target.stat().st_size}
    assert (tmp_path / "pytorch_model.bin").is_file()
    with safe_open(target, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "cls.predictions.decoder.weight" not in file.keys()  # noqa: SIM118 - no mapping
        assert "bert.embeddings.word_embeddings.weight" in file.keys()  # noqa: SIM118
    again = AutoModelForMaskedLM.from_pretrained(tmp_path, use_safetensors=True).eval()
    torch.testing.assert_close(again(INPUTS).logits, model(INPUTS).logits)
    _, told = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, use_safetensors=True, output_loading_info=True
    )
    assert all(name.startswith(("classifier", "bert.pooler")) for name in told["missing_keys"])


def test_shards_are_put_together_and_removed_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = BertForSequenceClassification(BertConfig(**CONFIG)).eval()
    pickled(tmp_path, model)
    (tmp_path / "pytorch_model.bin").unlink()
    names = list(model.state_dict())
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for shard, part in shards.items():
        torch.save({name: model.state_dict()[name] for name in part}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    code, said = answer(capsys, str(tmp_path), "--remove")
    assert (code, said["converted"]) == (0, list(shards))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(INPUTS).logits, model(INPUTS).logits)


def test_old_names_and_views_of_one_memory_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = BertForSequenceClassification(BertConfig(**CONFIG)).eval()
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in model.state_dict().items()
    }
    both = torch.stack([state["bert.encoder.layer.0.attention.self.query.bias"]] * 2)
    state["bert.encoder.layer.0.attention.self.query.bias"] = both[0]
    state["a.number.of.batches"] = torch.tensor(3)
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert answer(capsys, str(tmp_path))[0] == 0
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, use_safetensors=True).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_pickle_that_runs_something_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    trap = tmp_path / "sprung"
    value = {"weight": torch.ones(2), "surprise": Malicious(trap)}
    if protocol == "torch":
        torch.save(value, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(value, protocol=2))
    code, said = answer(capsys, str(tmp_path), "--remove")
    assert (code, said["error"]) == (3, "UNSAFE_WEIGHTS")
    assert not trap.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    "index", ["{", '{"weight_map": {"a": "../elsewhere.bin"}}', '{"weight_map": {"a": "missing.bin"}}', None]
)
def test_missing_and_broken_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], index: str | None) -> None:
    if index is not None:
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    code, said = answer(capsys, str(tmp_path))
    assert (code, said["error"]) == (1, "MODEL_DAMAGED")


def test_cut_off_pickle_is_damaged_not_unsafe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.ones(5000)}, tmp_path / "whole")
    (tmp_path / "pytorch_model.bin").write_bytes((tmp_path / "whole").read_bytes()[:9000])
    code, said = answer(capsys, str(tmp_path))
    assert (code, said["error"]) == (1, "MODEL_DAMAGED")
    assert not (tmp_path / "model.safetensors").exists()
