"""Loading a tokenizer and a classifier from a folder, and the facts about the model that the rest needs.

Only local folders, only safetensors, no code from the folder. The classifier's head fits the run's labels: one trained
for the same labels is kept (its rows put in the run's order), any other starts anew.
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kargah.compute.dropout import dropout_fields, override_dropout
from kargah.compute.failures import Code, TrainingFailed, damage_is
from kargah.compute.sink import Log
from kargah.spec.manifest import MANIFEST, FolderDamaged, verify_folder

# AutoConfig and the model classes are loosely typed; what they give is cast here once.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def be_silent() -> None:
    """No progress bars and no advice from transformers in this process: what matters is told as log records."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a padding token in any case.

    Raises `TOKENIZER_DAMAGED`, or `MODEL_DAMAGED` for the model's own config, which tells what tokenizer it is.
    """
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            with damage_is(Code.MODEL_DAMAGED if name == "config.json" else Code.TOKENIZER_DAMAGED, name):
                json.loads((folder / name).read_text(encoding="utf-8"))
    with damage_is(Code.TOKENIZER_DAMAGED, "tokenizer"):
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, **_LOCAL))
    # A folder without vocabulary loads as a tokenizer that knows its special tokens and nothing else.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise TrainingFailed(Code.TOKENIZER_DAMAGED, "the tokenizer has no vocabulary")
    if tokenizer.pad_token_id is None:
        substitute = tokenizer.eos_token or tokenizer.unk_token
        if substitute is None:
            raise TrainingFailed(Code.TOKENIZER_DAMAGED, "the tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = substitute
    return tokenizer


def load_classifier(
    folder: Path,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    log: Log,
    *,
    dropout: float | None = None,
) -> PreTrainedModel:
    """A classifier over `labels` in float32, from a base model or an earlier classifier. Raises `MODEL_DAMAGED`.

    A new head is drawn from torch's random state, so seed that first. `dropout` of None is the model's own.
    """
    _verify(folder)
    with damage_is(Code.MODEL_DAMAGED, folder.name):
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
        earlier = _labels_of(config)
        probabilities = {} if dropout is None else dict.fromkeys(dropout_fields(config), dropout)
        model, told = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            pad_token_id=tokenizer.pad_token_id,
            problem_type="single_label_classification",
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **probabilities,
            **_LOCAL,
        )
    model = _with_own_memory(model)
    if dropout is not None:
        override_dropout(model, dropout)
    new_names = _new_names(told)
    _check_body(model, new_names)
    if new_names:
        log.info("newWeights", names=sorted(new_names))
    else:
        _fit_head(model, earlier, list(labels), log)
    return model


def load_trained(folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """A classifier as it is, and its labels in the order of its logits. Raises `MODEL_DAMAGED`."""
    _verify(folder)
    with damage_is(Code.MODEL_DAMAGED, folder.name):
        model, told = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **_LOCAL
        )
    if told["missing_keys"]:
        name = sorted(told["missing_keys"])[0]
        raise TrainingFailed(Code.MODEL_DAMAGED, f"{folder.name} is not a trained classifier: {name} is missing")
    model = _with_own_memory(model)
    return model, _labels_of(model.config)


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest row in tokens that the model's learnt positions allow, or None when it has none of them.

    RoBERTa and its kin count positions from behind the padding token's, so the table is longer than the rows.
    """
    limits = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "wpe")
    ]
    return min(limits, default=getattr(model.config, "max_position_embeddings", None))


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether the model distinguishes the segments of a pair. GPT-2 accepts them but means something else by them."""
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes and int(getattr(model.config, "type_vocab_size", 0) or 0) > 1


def num_embeddings(model: PreTrainedModel) -> int:
    """Size of the model's vocabulary."""
    return int(cast(nn.Embedding, model.get_input_embeddings()).num_embeddings)


def num_parameters(model: nn.Module) -> int:
    """Parameters of a model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_trainable_parameters(model: nn.Module) -> int:
    """Parameters of a model that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def labels_of_folder(folder: Path) -> list[str]:
    """The labels a trained classifier's folder names, in the order of its logits. Raises `MODEL_DAMAGED`."""
    with damage_is(Code.MODEL_DAMAGED, "config.json"):
        return _labels_of(AutoConfig.from_pretrained(folder, **_LOCAL))


def _labels_of(config: PreTrainedConfig) -> list[str]:
    names = cast(dict[int, str], config.id2label or {})
    return [str(names[number]) for number in range(len(names))]


def _verify(folder: Path) -> None:
    if not folder.is_dir():
        raise TrainingFailed(Code.MODEL_DAMAGED, f"{folder.name}: there is no such folder")
    if (folder / MANIFEST).is_file():
        try:
            verify_folder(folder)
        except FolderDamaged as error:
            raise TrainingFailed(Code.MODEL_DAMAGED, str(error), file=error.file) from error


def _with_own_memory(model: Any) -> PreTrainedModel:
    """Move weights out of the mapped file, to where torch's allocator aligns them.

    A matrix product may round otherwise for memory aligned otherwise, so a resumed run would not repeat the first one's
    numbers; and a file that is replaced meanwhile would change a model in use.
    """
    module = cast(PreTrainedModel, model)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data = tensor.data.clone()
    return module


def _new_names(told: dict[str, Any]) -> set[str]:
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in told["mismatched_keys"]}
    return set(told["missing_keys"]) | mismatched


def _check_body(model: PreTrainedModel, new_names: set[str]) -> None:
    """A head may be new, and so may a pooler (language models have none); anything else means lost weights."""
    body = model.base_model_prefix + "."
    lost = sorted(name for name in new_names if name.startswith(body) and ".pooler." not in name)
    if lost:
        raise TrainingFailed(Code.MODEL_DAMAGED, f"weights are missing or have another shape: {lost[0]}", file=lost[0])


def _fit_head(model: PreTrainedModel, earlier: list[str], labels: list[str], log: Log) -> None:
    """Make a loaded head mean the run's labels: reorder it when it knows them, draw it anew when it knows others."""
    if earlier == labels or all(name == f"LABEL_{number}" for number, name in enumerate(earlier)):
        return
    layer = _output_layer(model, len(labels))
    with torch.no_grad():
        if set(earlier) == set(labels):
            order = torch.tensor([earlier.index(label) for label in labels])
            for parameter in layer.parameters(recurse=False):
                parameter.copy_(parameter[order].clone())
            log.info("headReordered", labels=labels)
        else:
            layer.weight.normal_(mean=0.0, std=float(getattr(model.config, "initializer_range", 0.02)))
            if layer.bias is not None:
                layer.bias.zero_()
            log.info("headAnew", labels=earlier)


def _output_layer(model: PreTrainedModel, num_labels: int) -> nn.Linear:
    body = model.base_model_prefix + "."
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_labels and not name.startswith(body)
    ]
    if not layers:
        raise TrainingFailed(Code.MODEL_DAMAGED, "the model has no linear output layer over its labels")
    return layers[-1]
