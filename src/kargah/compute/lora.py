"""Low-rank adapters on a frozen classifier, by peft: which layers take one, and how a checkpoint holds them.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". The layers adapted are linear ones of the body;
what stands behind the body (pooler and classifier) is the head and trains in full.

A checkpoint holds the model twice: `model.safetensors` with the adapters added into the weights, which anybody loads
without peft, and `adapter/` in peft's own format with adapters and head alone, which a resumed run puts on the frozen
base again. Adding happens in copies: the base's weights never change, so nothing is rounded away from training.
"""

import copy
import warnings
from pathlib import Path
from typing import cast

import peft
import torch
from peft.tuners.lora import Linear, LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kargah.compute.failures import Code, TrainingFailed, damage_is
from kargah.spec.run_spec import LoraConfig

FOLDER = "adapter"
WEIGHTS = "adapter_model.safetensors"
_ADAPTER = "default"
_ATTENTION = ("attention", "attn")

Weights = dict[str, dict[str, torch.Tensor]]
"""What a checkpoint holds of a model: tensors by name, under `model` and perhaps `adapter`."""


def adapt(model: PreTrainedModel, config: LoraConfig, base_id: str) -> peft.PeftModel:
    """Put adapters into `model`, in place: from now on only they and the head train. `base_id` names the base for peft.

    The first matrices are drawn from torch's random state, the second are zero, so the model still says what it said.
    Raises `TrainingFailed` (`SPEC_INVALID`) for a target that is not there.
    """
    targets = target_names(model, config.target_modules)
    made = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # a fraction is as good
        lora_dropout=config.dropout,
        target_modules=targets,
        modules_to_save=head_names(model),
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that will be gone one day
        adapted = peft.get_peft_model(model, made, adapter_name=_ADAPTER)
    made.base_model_name_or_path = base_id
    return adapted


def target_names(model: PreTrainedModel, wanted: list[str] | None) -> list[str]:
    """Full names of the linear layers of the body to adapt.

    None means those of the attention; in an architecture that calls nothing so, those peft knows it by, else every
    linear layer of the body. A wanted name is a layer's own name (`query`), or more of its path. Raises
    `TrainingFailed`: `SPEC_INVALID` for one that names no linear layer, `NOT_SUPPORTED` for a body without any.
    """
    linear = _linear_layers(model)
    if not linear:
        raise TrainingFailed(Code.NOT_SUPPORTED, f"{model.config.model_type} has no linear layers", field="lora")
    if wanted is None:
        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, [])
        return (
            [name for name in linear if any(sign in name.lower() for sign in _ATTENTION)]
            or [name for name in linear if any(_is_called(name, target) for target in known)]
            or linear
        )
    for target in wanted:
        if not any(_is_called(name, target) for name in linear):
            available = sorted({name.rpartition(".")[2] for name in linear})
            raise TrainingFailed(
                Code.SPEC_INVALID,
                f"no linear layer of the model is called {target}; there are {', '.join(available)}",
                field="lora.targetModules",
                target=target,
                available=available,
            )
    return [name for name in linear if any(_is_called(name, target) for target in wanted)]


def adapted_names(model: PreTrainedModel) -> list[str]:
    """Full names of the layers that have an adapter."""
    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def head_names(model: PreTrainedModel) -> list[str]:
    """Full names of the modules that train in full: what stands beside the body, and a pooler inside it."""
    beside = [name for name, child in model.named_children() if name != model.base_model_prefix and _has_weights(child)]
    poolers = [name for name, module in model.base_model.named_modules() if _is_pooler(name) and _has_weights(module)]
    return beside + [f"{model.base_model_prefix}.{name}" for name in poolers]


def adapted_weights(adapted: peft.PeftModel) -> Weights:
    """All that a checkpoint holds: `model` with the adapters added in, and `adapter`."""
    model = cast(PreTrainedModel, adapted.get_base_model())
    return {"model": merged_weights(model), "adapter": _adapter_weights(adapted)}


def save_adapted(adapted: peft.PeftModel, folder: Path, weights: Weights | None = None) -> None:
    """Write the model with its adapters added in, and beside it `adapter/`: the present weights, or those given."""
    weights = adapted_weights(adapted) if weights is None else weights
    model = cast(PreTrainedModel, adapted.get_base_model())
    model.save_pretrained(folder, state_dict=weights["model"])
    inner = folder / FOLDER
    inner.mkdir()
    save_file(weights["adapter"], inner / WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(cast(peft.LoraConfig, adapted.peft_config[_ADAPTER]))
    # peft keeps sets, whose order differs from process to process, and would train on by default.
    config.target_modules = sorted(config.target_modules or ())
    config.modules_to_save = list(dict.fromkeys(config.modules_to_save or ()))
    config.inference_mode = True
    config.save_pretrained(str(inner))


def load_adapter(adapted: peft.PeftModel, folder: Path) -> None:
    """Put the adapters and the head of a checkpoint back. Raises `TrainingFailed` (`MODEL_DAMAGED`)."""
    name = f"{FOLDER}/{WEIGHTS}"
    with damage_is(Code.MODEL_DAMAGED, name, file=name):
        weights = load_file(folder / name)
    present = _adapter_weights(adapted)
    if {key: tensor.shape for key, tensor in weights.items()} != {key: tensor.shape for key, tensor in present.items()}:
        raise TrainingFailed(Code.MODEL_DAMAGED, f"{name} belongs to other adapters than the spec's", file=name)
    peft.set_peft_model_state_dict(adapted, weights, adapter_name=_ADAPTER)


def merged_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights of an adapted model under the names of the plain one, adapters added in; the model itself is not touched.

    Weights without an adapter are the model's own tensors, not copies.
    """
    weights = {
        name.replace(".base_layer.", ".").replace(f".modules_to_save.{_ADAPTER}.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name and ".original_module." not in name
    }
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                update = cast(Linear, layer).get_delta_weight(_ADAPTER)
                weights[f"{name}.weight"] = weights[f"{name}.weight"] + update
    return weights


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Linear layers of the body, without a pooler's."""
    return [
        f"{model.base_model_prefix}.{name}"
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(_is_pooler(part) for part in name.split("."))
    ]


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _is_pooler(name: str) -> bool:
    return name.rpartition(".")[2] == "pooler"


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _adapter_weights(adapted: peft.PeftModel) -> dict[str, torch.Tensor]:
    weights = peft.get_peft_model_state_dict(adapted, adapter_name=_ADAPTER, save_embedding_layers=False)
    return {name: tensor.contiguous() for name, tensor in weights.items()}
