"""A copy in memory writes the bytes of the original, shares what it shares, and costs new memory only once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from kargah.compute.snapshot import Snapshot

from .architectures import ARCHITECTURES, classifier_of
from .tiny import tree_bytes


def stepped(model: PreTrainedModel) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def storages(state: dict[str, torch.Tensor]) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in state.values()]


def tied_model() -> PreTrainedModel:
    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return BertForMaskedLM(config)


def test_tied_weights_stay_tied_and_are_written_once(tmp_path: Path) -> None:
    model = tied_model()
    state = model.state_dict()
    taken = Snapshot().take(state)
    assert len(set(storages(taken))) == len(set(storages(state))) < len(state)
    assert not set(storages(taken)) & set(storages(state))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "other", state_dict=taken)
    assert tree_bytes(tmp_path / "one", "model.safetensors", "config.json") == tree_bytes(
        tmp_path / "other", "model.safetensors", "config.json"
    )


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_files_of_a_copy_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    model = classifier_of(ARCHITECTURES[name][0])
    optimizer = stepped(model)
    taken = Snapshot().take({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    for folder, weights, state in (
        (tmp_path / "one", model.state_dict(), optimizer.state_dict()),
        (tmp_path / "other", taken["model"], taken["optimizer"]),
    ):
        model.save_pretrained(folder, state_dict=weights)
        torch.save(state, folder / "optimizer.pt")
    names = ("model.safetensors", "optimizer.pt")
    assert tree_bytes(tmp_path / "one", *names) == tree_bytes(tmp_path / "other", *names)


@pytest.mark.parametrize("reserved", [False, True])
def test_copy_is_of_its_moment_and_its_memory_is_used_again(reserved: bool) -> None:
    model = tied_model()
    optimizer = stepped(model)

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "more": [("a", {"b": 1.5})]}

    snapshot = Snapshot()
    if reserved:
        snapshot.reserve(state())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = snapshot.take(state())
    optimizer.step()
    assert all(torch.equal(first["model"][name], tensor) for name, tensor in before.items())
    assert first["optimizer"]["state"][0]["step"] == 1
    assert first["more"] == [("a", {"b": 1.5})]
    places = storages(first["model"])
    second = snapshot.take(state())
    assert storages(second["model"]) == places
    assert all(torch.equal(second["model"][name], tensor) for name, tensor in model.state_dict().items())
    assert second["optimizer"]["state"][0]["step"] == 2


def test_views_keep_their_shape_and_place() -> None:
    whole = torch.arange(12, dtype=torch.float32)
    value = {"turned": whole.view(3, 4).T, "part": whole[4:7], "empty": torch.empty(0), "one": torch.tensor(3)}
    taken = Snapshot().take(value)
    for name, tensor in value.items():
        assert torch.equal(taken[name], tensor)
        assert (taken[name].stride(), taken[name].dtype) == (tensor.stride(), tensor.dtype)
    assert taken["turned"].untyped_storage().data_ptr() == taken["part"].untyped_storage().data_ptr()


def test_what_grows_gets_new_memory() -> None:
    snapshot = Snapshot()
    snapshot.reserve([torch.zeros(4)])
    assert torch.equal(snapshot.take([torch.ones(9)])[0], torch.ones(9))
    first, second = snapshot.take([torch.ones(9), torch.full((2,), 5.0)])
    assert (first.sum(), second.sum()) == (9, 10)
