"""Tiny models of many architectures, as classifiers of three labels."""

from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
    set_seed,
)

SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 40, "pad_token_id": 1, "num_labels": 3,
}  # fmt: skip
DECODER: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
QKV = ["key", "query", "value"]
PROJECTIONS = ["k_proj", "o_proj", "q_proj", "v_proj"]

# config, last names of the layers adapted, names of the modules that train in full
ARCHITECTURES: dict[str, tuple[PreTrainedConfig, list[str], list[str]]] = {
    "bert": (BertConfig(**SIZES), ["dense", *QKV], ["classifier", "bert.pooler"]),
    "roberta": (RobertaConfig(**SIZES), ["dense", *QKV], ["classifier"]),
    "xlm-roberta": (XLMRobertaConfig(**SIZES), ["dense", *QKV], ["classifier"]),
    "distilbert": (
        DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=3),
        ["k_lin", "out_lin", "q_lin", "v_lin"],
        ["pre_classifier", "classifier"],
    ),
    "albert": (AlbertConfig(**SIZES, embedding_size=8), ["dense", *QKV], ["classifier", "albert.pooler"]),
    "mpnet": (MPNetConfig(**SIZES), ["k", "o", "q", "v"], ["classifier"]),
    "deberta-v2": (
        DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        ["dense", "key_proj", "pos_key_proj", "pos_query_proj", "query_proj", "value_proj"],
        ["pooler", "classifier"],
    ),
    "electra": (ElectraConfig(**SIZES, embedding_size=8), ["dense", *QKV], ["classifier"]),
    "llama": (LlamaConfig(**DECODER), PROJECTIONS, ["score"]),
    "qwen2": (Qwen2Config(**DECODER), PROJECTIONS, ["score"]),
    "gpt2": (
        GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=40, pad_token_id=1, num_labels=3),
        ["c_attn", "c_proj"],
        ["score"],
    ),
    # An encoder without attention: every linear layer of its body.
    "fnet": (FNetConfig(**SIZES), ["dense", "projection"], ["classifier", "fnet.pooler"]),
}


def classifier_of(config: PreTrainedConfig) -> PreTrainedModel:
    """A classifier with weights drawn anew, the same every time, in evaluation mode."""
    set_seed(5)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return model.eval()
