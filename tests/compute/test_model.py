"""Architectures, heads and the limits of positions, with tiny models made here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    set_seed,
)

from kargah.compute.data import Rows
from kargah.compute.encode import encode_rows
from kargah.compute.forward import logits_of
from kargah.compute.model import load_classifier, load_tokenizer, max_positions, num_embeddings, takes_token_types
from kargah.compute.sink import Log

from .tiny import ListSink, make_tokenizer, sentences

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LOG = Log(ListSink())

POSITIONS = {"max_position_embeddings": 32}
# RoBERTa counts positions from behind its padding token's number, so its table has two more.
ROBERTA = {"max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1}

# config, body, whether segments are told apart
ARCHITECTURES = {
    "bert": (BertConfig(**SIZES, **POSITIONS), BertModel, True),
    "roberta": (RobertaConfig(**SIZES, **ROBERTA), RobertaModel, False),
    "xlm-roberta": (XLMRobertaConfig(**SIZES, **ROBERTA), XLMRobertaModel, False),
    "albert": (AlbertConfig(**SIZES, **POSITIONS, embedding_size=16), AlbertModel, True),
    "distilbert": (DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, **POSITIONS), DistilBertModel, False),
    "gpt2": (GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32), GPT2Model, False),
}
LONGEST = 32


def save_body(folder: Path, config: PreTrainedConfig, body: type[PreTrainedModel], roberta: bool) -> None:
    tokenizer = make_tokenizer(sentences(60)[0])
    if roberta:  # its padding token is the second, as its positions expect
        backend = tokenizer.backend_tokenizer.to_str().replace('"[PAD]":0,"[UNK]":1', '"[UNK]":0,"[PAD]":1')
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=type(tokenizer.backend_tokenizer).from_str(backend),
            unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        )  # fmt: skip
    if config.model_type == "gpt2":
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", eos_token="[SEP]"
        )
    config.vocab_size = len(tokenizer)
    set_seed(2)
    body(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_changes_nothing_in_any_architecture(name: str, tmp_path: Path) -> None:
    config, body, segments = ARCHITECTURES[name]
    save_body(tmp_path, config, body, "roberta" in name)
    tokenizer = load_tokenizer(tmp_path)
    model = load_classifier(tmp_path, ["الف", "ب"], tokenizer, LOG)
    assert max_positions(model) == LONGEST
    assert takes_token_types(model) is segments
    assert model.config.pad_token_id == tokenizer.pad_token_id
    texts = ["خوب", sentences(1)[0][0], " ".join(sentences(9)[0])]
    rows, facts = encode_rows(
        tokenizer, Rows(texts, list(reversed(texts)), ["ب", "الف", "ب"]), ["الف", "ب"],
        max_length=LONGEST, token_types=segments, num_embeddings=num_embeddings(model),
    )  # fmt: skip
    assert rows.lengths.max() == LONGEST
    assert facts.truncated_share == pytest.approx(2 / 3)
    assert facts.unknown_share < 0.05
    inputs = rows.batch([0, 1, 2])
    assert inputs["labels"].tolist() == [1, 0, 1]
    assert ("token_type_ids" in inputs) is segments
    if segments:
        assert set(inputs["token_type_ids"][0].tolist()) == {0, 1}
    together = logits_of(model, rows, torch.device("cpu"), batch_size=3)
    alone = logits_of(model, rows, torch.device("cpu"), batch_size=1)
    assert together.shape == (3, 2)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_unknown_tokens_are_counted_without_the_special_ones(tmp_path: Path) -> None:
    save_body(tmp_path, BertConfig(**SIZES), BertModel, False)
    tokenizer = load_tokenizer(tmp_path)
    _, facts = encode_rows(
        tokenizer, Rows(["خوب 漢 خوب 漢"], [], ["a"]), ["a"], max_length=16, token_types=False, num_embeddings=10**6
    )
    assert facts.unknown_share == 0.5
    assert facts.truncated_share == 0.0


def test_head_is_kept_reordered_or_drawn_anew_by_what_its_labels_are(tmp_path: Path) -> None:
    save_body(tmp_path / "body", BertConfig(**SIZES), BertModel, False)
    tokenizer = load_tokenizer(tmp_path / "body")
    first = load_classifier(tmp_path / "body", ["الف", "ب", "پ"], tokenizer, LOG)
    first.save_pretrained(tmp_path / "trained")
    weight = first.state_dict()["classifier.weight"]

    def again(labels: list[str]) -> torch.Tensor:
        set_seed(99)
        return load_classifier(tmp_path / "trained", labels, tokenizer, LOG).state_dict()["classifier.weight"]

    assert torch.equal(again(["الف", "ب", "پ"]), weight)
    assert torch.equal(again(["پ", "الف", "ب"]), weight[[2, 0, 1]])
    other = again(["x", "y", "z"])
    assert other.shape == weight.shape
    assert not torch.equal(other, weight)
    assert again(["x", "y"]).shape == (2, 16)


def test_language_model_without_pooler_is_a_fine_base(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(sentences(60)[0])
    BertForMaskedLM(BertConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    sink = ListSink()
    model = load_classifier(tmp_path, ["الف", "ب"], tokenizer, Log(sink))
    assert model.config.id2label == {0: "الف", 1: "ب"}
    (record,) = sink.of("log")
    assert "bert.pooler.dense.weight" in record["details"]["names"]


def test_float16_weights_are_trained_in_float32(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(sentences(60)[0])
    BertModel(BertConfig(**SIZES, vocab_size=len(tokenizer))).half().save_pretrained(tmp_path)
    model = load_classifier(tmp_path, ["الف", "ب"], tokenizer, LOG)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
