"""What an attempt starts with: a checkpoint to go on from, or the base model, perhaps with a Persian vocabulary.

With adapters the base model is always where the weights come from: a checkpoint gives back adapters and head alone.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kargah.compute.align import align, glossed, sentence_vectors
from kargah.compute.data import Rows, TrainingData
from kargah.compute.dropout import override_dropout
from kargah.compute.failures import Code, TrainingFailed
from kargah.compute.graft import graft, persian_tokenizer
from kargah.compute.hardware import Hardware
from kargah.compute.lora import Weights, adapt, adapted_names, adapted_weights, load_adapter, save_adapted
from kargah.compute.model import (
    labels_of_folder,
    load_classifier,
    load_tokenizer,
    load_trained,
    num_parameters,
    num_trainable_parameters,
)
from kargah.compute.sink import Log
from kargah.spec.run_spec import LoraConfig, RunSpec

ALIGNMENT_RATE = 3e-4


@dataclass(frozen=True, slots=True)
class Start:
    """A model ready to train. `save` writes what `weights` gave, or a copy, into a folder that `from_pretrained` loads.

    `num_parameters` are those of the model as it is saved, without adapters beside it.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    weights: Callable[[], Weights]
    save: Callable[[Path, Weights], None]
    num_parameters: int


def starting_model(
    spec: RunSpec,
    resume: Path | None,
    data: TrainingData,
    hardware: Hardware,
    log: Log,
    get_on: Callable[[], None],
) -> Start:
    """The model of the checkpoint folder `resume`, else the base, grafted and adapted as the spec says.

    `get_on` is called whenever the work gets on. Raises `TrainingFailed`, and whatever `get_on` raises.
    """
    config = spec.config
    if resume is not None:
        _check_labels(resume, data.labels)
    if resume is not None and config.lora is None:
        model, _ = load_trained(resume)
        if config.dropout is not None:
            override_dropout(model, config.dropout)
        return _plain(load_tokenizer(resume), model)
    folder = Path(spec.base_model.path)
    tokenizer = load_tokenizer(folder)
    model = load_classifier(folder, data.labels, tokenizer, log, dropout=config.dropout)
    if config.lora is not None:
        return _adapted(spec, config.lora, resume, tokenizer, model, log)
    if config.vocabulary == "fa":
        model.to(hardware.device)  # type: ignore[arg-type]
        tokenizer = _graft(spec, model, tokenizer, data.train, log, get_on)
    return _plain(tokenizer, model)


def _check_labels(resume: Path, labels: list[str]) -> None:
    known = labels_of_folder(resume)
    if known != labels:
        raise TrainingFailed(
            Code.DATA_DAMAGED,
            "the data's labels are not those of the checkpoint",
            labels=labels,
            checkpointLabels=known,
        )


def _plain(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Start:
    def weights() -> Weights:
        return {"model": model.state_dict()}

    def save(folder: Path, weights: Weights) -> None:
        model.save_pretrained(folder, state_dict=weights["model"])

    return Start(tokenizer, model, weights, save, num_parameters(model))


def _adapted(
    spec: RunSpec,
    lora: LoraConfig,
    resume: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    log: Log,
) -> Start:
    whole = num_parameters(model)
    adapted = adapt(model, lora, spec.base_model.id)
    if resume is not None:
        load_adapter(adapted, resume)
        tokenizer = load_tokenizer(resume)
    targets = sorted({name.rpartition(".")[2] for name in adapted_names(model)})
    num_trained = num_trainable_parameters(model)
    log.info(
        "adaptersAdded",
        rank=lora.rank,
        trainableShare=num_trained / whole,
        targetModules=targets,
        numTrainableParameters=num_trained,
    )

    def weights() -> Weights:
        return adapted_weights(adapted)

    def save(folder: Path, weights: Weights) -> None:
        save_adapted(adapted, folder, weights)

    return Start(tokenizer, model, weights, save, whole)


def _graft(
    spec: RunSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    log: Log,
    get_on: Callable[[], None],
) -> PreTrainedTokenizerBase:
    """Give the model a Persian vocabulary, and its texts their meaning. Returns the new tokenizer."""
    texts = [*rows.texts, *rows.pairs]
    get_on()
    persian = persian_tokenizer(texts, tokenizer)
    get_on()
    body = cast(PreTrainedModel, model.base_model)
    english = copy.deepcopy(body)
    grafted = graft(model, tokenizer, persian)
    log.info("vocabularyGrafted", vocabularySize=grafted.vocabulary_size, numGlossed=grafted.num_glossed)
    epochs = spec.config.alignment_epochs
    if epochs:
        targets = sentence_vectors(english, tokenizer, glossed(texts, persian), between=get_on)
        align(
            body,
            persian,
            texts,
            targets,
            epochs=epochs,
            learning_rate=ALIGNMENT_RATE,
            seed=spec.config.seed,
            on_epoch=lambda epoch, loss: log.info("aligned", epoch=epoch, numEpochs=epochs, loss=loss),
            get_on=get_on,
        )
    return persian
