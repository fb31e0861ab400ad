"""What an attempt starts with: a checkpoint to go on from, or the base model, perhaps with a Persian vocabulary."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kargah.compute.align import align, glossed, sentence_vectors
from kargah.compute.data import Rows, TrainingData
from kargah.compute.failures import Code, TrainingFailed
from kargah.compute.graft import graft, persian_tokenizer
from kargah.compute.hardware import Hardware
from kargah.compute.model import load_classifier, load_tokenizer, load_trained
from kargah.compute.sink import Log
from kargah.spec.run_spec import RunSpec

ALIGNMENT_RATE = 3e-4


def starting_model(
    spec: RunSpec,
    resume: Path | None,
    data: TrainingData,
    hardware: Hardware,
    log: Log,
    check_wish: Callable[[], None],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and classifier: those of the checkpoint folder `resume`, else the base's, grafted where the spec says.

    Raises `TrainingFailed`, and whatever `check_wish` raises.
    """
    if resume is None:
        folder = Path(spec.base_model.path)
        tokenizer = load_tokenizer(folder)
        model = load_classifier(folder, data.labels, tokenizer, log)
        if spec.config.vocabulary == "fa":
            model.to(hardware.device)  # type: ignore[arg-type]
            tokenizer = _graft(spec, model, tokenizer, data.train, log, check_wish)
        return tokenizer, model
    model, known = load_trained(resume)
    if known != data.labels:
        raise TrainingFailed(
            Code.DATA_DAMAGED,
            "the data's labels are not those of the checkpoint",
            labels=data.labels,
            checkpointLabels=known,
        )
    return load_tokenizer(resume), model


def _graft(
    spec: RunSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    log: Log,
    check_wish: Callable[[], None],
) -> PreTrainedTokenizerBase:
    """Give the model a Persian vocabulary, and its texts their meaning. Returns the new tokenizer."""
    texts = [*rows.texts, *rows.pairs]
    persian = persian_tokenizer(texts, tokenizer)
    body = cast(PreTrainedModel, model.base_model)
    english = copy.deepcopy(body)
    grafted = graft(model, tokenizer, persian)
    log.info(
        f"Persian vocabulary grafted: {grafted.vocabulary_size} pieces, {grafted.num_glossed} from glosses",
        vocabularySize=grafted.vocabulary_size,
        numGlossed=grafted.num_glossed,
    )
    epochs = spec.config.alignment_epochs
    if epochs:
        targets = sentence_vectors(english, tokenizer, glossed(texts, persian))
        align(
            body,
            persian,
            texts,
            targets,
            epochs=epochs,
            learning_rate=ALIGNMENT_RATE,
            seed=spec.config.seed,
            on_epoch=lambda epoch, loss: log.info(f"aligned with glosses, epoch {epoch} of {epochs}: loss {loss:.3f}"),
            check_wish=check_wish,
        )
    return persian
