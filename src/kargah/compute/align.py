"""Sentence meaning for grafted words, learnt without labels.

The model learns to say of a Persian text what an English encoder says of the same text glossed word by word.

This is knowledge distillation across languages (Reimers, Gurevych 2020, "Making monolingual sentence embeddings
multilingual using knowledge distillation") with glosses in place of translations. The loss names each text's vector
among those of its batch (InfoNCE, van den Oord, Li, Vinyals 2018) and points at it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kargah.compute.batches import EpochBatches
from kargah.compute.graft import CONTINUES, lexicon

BATCH_SIZE = 32
TEMPERATURE = 0.05
WARM_UP_SHARE = 0.1
MAX_GRAD_NORM = 1.0
_ARABIC_SCRIPT = re.compile(r"[\u0600-\u06ff]")


def glossed(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts word by word in English, as `tokenizer` (a Persian one) cuts them; letters without a gloss are left out."""
    glosses = lexicon()

    def gloss(token: str) -> str:
        return glosses.get(token, "" if _ARABIC_SCRIPT.search(token) else token.removeprefix(CONTINUES))

    return [" ".join(filter(None, map(gloss, tokenizer.tokenize(text)))) for text in texts]


@torch.no_grad()
def sentence_vectors(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 96,
    *,
    between: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Mean-pooled, normalised vectors of texts, float32 of shape [texts, width]. `between` is called at each batch."""
    encoder.eval()  # type: ignore[no-untyped-call]
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    vectors = torch.zeros(len(texts), int(encoder.config.hidden_size))
    for begin in range(0, len(order), 64):
        between()
        part = order[begin : begin + 64]
        given = [texts[number] for number in part]
        batch = tokenizer(given, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        hidden = encoder(**batch.to(encoder.device)).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        vectors[part] = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).float().cpu()
    return vectors


def align(
    body: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    targets: torch.Tensor,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    on_epoch: Callable[[int, float], None],
    get_on: Callable[[], None],
    max_length: int = 64,
    batch_size: int = BATCH_SIZE,
) -> None:
    """Teach `body` (a model without its head) to give the vectors `targets` (shape [texts, width]) for `texts`.

    Its sentence vector is what a classifier's head sees: the pooled output, else the first token's. The token
    embeddings and the throw-away projection learn five times as fast. `on_epoch` is told the epoch, from 1, and the
    mean loss; `get_on` is called at every batch and may raise.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    projection = nn.Linear(int(body.config.hidden_size), targets.shape[1]).to(body.device)
    embedding = list(body.get_input_embeddings().parameters())
    own = {id(parameter) for parameter in embedding}
    rest = [parameter for parameter in body.parameters() if id(parameter) not in own]
    quick = [*embedding, *projection.parameters()]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": quick, "lr": 5 * learning_rate}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    batches = EpochBatches(np.asarray([len(ids) for ids in encoded]), batch_size, seed, bucketed=True)
    num_steps = epochs * len(batches)
    num_warm = max(1, round(WARM_UP_SHARE * num_steps))

    def share(step: int) -> float:
        return min((step + 1) / num_warm, (num_steps - step) / max(1, num_steps - num_warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    body.train()
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        total = 0.0
        for part in batches:
            get_on()
            batch = tokenizer.pad({"input_ids": [encoded[number] for number in part]}, return_tensors="pt")
            vectors = nn.functional.normalize(projection(_pooled(body, batch.to(body.device))), dim=-1)
            wanted = targets[part].to(body.device)
            likeness = vectors @ wanted.T / TEMPERATURE
            names = torch.arange(len(part), device=body.device)
            loss = nn.functional.cross_entropy(likeness, names) + (1 - (vectors * wanted).sum(-1)).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([*rest, *quick], MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += float(loss.detach())
        on_epoch(epoch + 1, total / len(batches))


def _pooled(body: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    output = body(**batch)
    pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
    return pooled if pooled is not None else output.last_hidden_state[:, 0]
