"""A trained classifier as one thing: texts in, probabilities out. For the programs that predict and measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kargah.compute.data import Rows
from kargah.compute.encode import encode_rows
from kargah.compute.forward import FORWARD_BATCH_SIZE, logits_of
from kargah.compute.model import load_tokenizer, load_trained, max_positions, num_embeddings, takes_token_types

# Tokenizers without a limit of their own say so with a number of this kind.
_NO_LIMIT = 1_000_000
_DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model folder, loaded. `labels` are in the order of the logits."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    max_length: int
    device: torch.device

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] = (), *, batch_size: int = FORWARD_BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Logits of shape [texts, labels]."""
        rows = Rows(list(texts), list(pairs), [self.labels[0]] * len(texts))
        encoded, _ = encode_rows(
            self.tokenizer,
            rows,
            self.labels,
            max_length=self.max_length,
            token_types=takes_token_types(self.model),
            num_embeddings=num_embeddings(self.model),
        )
        return logits_of(self.model, encoded, self.device, batch_size=batch_size)

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] = ()) -> NDArray[np.float64]:
        """Softmax of the logits, shape [texts, labels]."""
        logits = self.logits(texts, pairs).astype(np.float64)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def load_folder(folder: Path) -> Classifier:
    """Load a checkpoint or a trained model, on the CPU. Raises `TrainingFailed` (`MODEL_DAMAGED`, …)."""
    model, labels = load_trained(folder)
    tokenizer = load_tokenizer(folder)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    limits = [limit for limit in (max_positions(model), tokenizer.model_max_length) if limit and limit < _NO_LIMIT]
    model.train(False)
    return Classifier(model, tokenizer, labels, min(limits, default=_DEFAULT_MAX_LENGTH), torch.device("cpu"))
