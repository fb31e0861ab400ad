"""Texts as token numbers: tokenised once, up front, kept flat, padded batch by batch to the longest row in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from kargah.compute.cutting import cut_texts
from kargah.compute.data import Rows
from kargah.compute.failures import Code, TrainingFailed, damage_is

TOKENIZE_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Padding:
    """What fills up a batch: the number of the padding token and of its segment, and on which side."""

    token: int
    token_type: int
    left: bool


@dataclass(frozen=True, slots=True)
class EncodingFacts:
    """What tokenising told: shares are between 0 and 1, lengths count tokens with the special ones."""

    truncated_share: float
    unknown_share: float
    mean_length: float
    max_length: int


class EncodedRows(Dataset[int]):
    """Tokenised rows. An item is its own number; `batch` turns numbers into tensors.

    `labels` are class numbers, int64 of shape [n]. `teacher_logits`, when set, is float32 of shape [n, classes].
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        starts: NDArray[np.int64],
        token_types: NDArray[np.int8] | None,
        labels: NDArray[np.int64],
        padding: Padding,
    ) -> None:
        self._tokens = tokens
        self._starts = starts
        self._token_types = token_types
        self._padding = padding
        self.labels = labels
        self.teacher_logits: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape [n]."""
        return np.diff(self._starts)

    def __getitem__(self, number: int) -> int:
        return number

    def inputs(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the model's `forward` takes for these rows, each int64 of shape [rows, longest]."""
        longest = max(1, max(int(self._starts[n + 1] - self._starts[n]) for n in numbers))
        shape = (len(numbers), longest)
        input_ids = np.full(shape, self._padding.token, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        token_types = np.full(shape, self._padding.token_type, dtype=np.int64)
        for row, number in enumerate(numbers):
            start, end = self._starts[number], self._starts[number + 1]
            place = slice(longest - (end - start), longest) if self._padding.left else slice(0, end - start)
            input_ids[row, place] = self._tokens[start:end]
            attention_mask[row, place] = 1
            if self._token_types is not None:
                token_types[row, place] = self._token_types[start:end]
        tensors = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
        if self._token_types is not None:
            tensors["token_type_ids"] = torch.from_numpy(token_types)
        return tensors

    def batch(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """`inputs` with `labels` [rows], and `teacher_logits` [rows, classes] when there is a teacher."""
        chosen = np.asarray(numbers)
        tensors = self.inputs(numbers) | {"labels": torch.from_numpy(self.labels[chosen])}
        if self.teacher_logits is not None:
            tensors["teacher_logits"] = torch.from_numpy(self.teacher_logits[chosen])
        return tensors


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    labels: Sequence[str],
    *,
    max_length: int,
    token_types: bool,
    num_embeddings: int,
    between: Callable[[], None] = lambda: None,
) -> tuple[EncodedRows, EncodingFacts]:
    """Tokenise `rows`, cut to `max_length` tokens (the longer text of a pair first).

    `token_types` says whether the model takes segments. `num_embeddings` is the size of the model's vocabulary: a token
    beyond it means that tokenizer and model do not belong together (`TOKENIZER_DAMAGED`). `between` is called at every
    thousand rows and may raise.
    """
    number_of = {label: number for number, label in enumerate(labels)}
    parts: list[NDArray[np.int32]] = []
    type_parts: list[NDArray[np.int8]] = []
    num_truncated = num_unknown = num_own = 0
    for begin in range(0, len(rows), TOKENIZE_AT_ONCE):
        between()
        texts = rows.texts[begin : begin + TOKENIZE_AT_ONCE]
        pairs = rows.pairs[begin : begin + TOKENIZE_AT_ONCE] if rows.pairs else None
        with damage_is(Code.TOKENIZER_DAMAGED, "tokenizer"):
            texts, pairs = cut_texts(tokenizer, texts, pairs, max_length)
            encoded = tokenizer(
                texts,
                pairs,
                truncation=True,
                max_length=max_length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=token_types,
                return_special_tokens_mask=True,
            )
        for number, tokens in enumerate(encoded["input_ids"]):
            part = np.asarray(tokens, dtype=np.int32)
            own = np.asarray(encoded["special_tokens_mask"][number]) == 0
            num_own += int(own.sum())
            if tokenizer.unk_token_id is not None:
                num_unknown += int((part[own] == tokenizer.unk_token_id).sum())
            parts.append(part)
            if token_types:
                type_parts.append(np.asarray(encoded["token_type_ids"][number], dtype=np.int8))
        full = [number for number, tokens in enumerate(encoded["input_ids"]) if len(tokens) >= max_length]
        num_truncated += _num_longer(tokenizer, texts, pairs, full, max_length)
    tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
    if len(tokens) and int(tokens.max()) >= num_embeddings:
        raise TrainingFailed(
            Code.TOKENIZER_DAMAGED, f"token {int(tokens.max())} is beyond the model's {num_embeddings} embeddings"
        )
    lengths = np.asarray([len(part) for part in parts], dtype=np.int64)
    encoded_rows = EncodedRows(
        tokens,
        np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
        np.concatenate(type_parts) if type_parts else None,
        np.asarray([number_of[label] for label in rows.labels], dtype=np.int64),
        padding_of(tokenizer),
    )
    facts = EncodingFacts(
        truncated_share=num_truncated / max(1, len(rows)),
        unknown_share=num_unknown / max(1, num_own),
        mean_length=float(lengths.mean()) if len(lengths) else 0.0,
        max_length=max_length,
    )
    return encoded_rows, facts


def padding_of(tokenizer: PreTrainedTokenizerBase) -> Padding:
    """How this tokenizer pads."""
    return Padding(int(tokenizer.pad_token_id), int(tokenizer.pad_token_type_id), tokenizer.padding_side == "left")


def _num_longer(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, full: list[int], max_length: int
) -> int:
    """How many of the rows that fill `max_length` were really cut."""
    if not full:
        return 0
    whole = tokenizer(
        [texts[number] for number in full],
        [pairs[number] for number in full] if pairs else None,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return sum(len(tokens) > max_length for tokens in whole["input_ids"])
