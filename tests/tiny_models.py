"""Makes a folder of tiny real things, served as a hub in tests. Run as a program: it needs torch, the tests do not.

`python tests/tiny_models.py FOLDER` writes below `FOLDER/models` a BERT of 2 layers × 32 as safetensors, a DistilBERT
only as a pickle of tensors, and a pickle that would run a command; below `FOLDER/datasets` and `FOLDER/opinions` the
same Persian opinions as CSV.
"""

import csv
import os
import sys
from pathlib import Path
from typing import Any

import torch
from compute.tiny import make_tokenizer, sentences
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, set_seed


class _Evil:
    def __init__(self, victim: Path) -> None:
        self._victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._victim}",)


def main(folder: Path) -> None:
    """Write everything."""
    tokenizer = make_tokenizer(sentences(300)[0])
    models = folder / "models"
    set_seed(7)
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.1,
    )
    safe = models / "HooshvareLab" / "bert-fa-base-uncased"
    BertModel(bert).save_pretrained(safe)
    tokenizer.save_pretrained(safe)

    distil = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=48
    )
    pickled = models / "HooshvareLab" / "distilbert-fa-zwnj-base"
    pickled.mkdir(parents=True)
    tokenizer.save_pretrained(pickled)
    distil.architectures = ["DistilBertModel"]
    distil.save_pretrained(pickled)
    torch.save(DistilBertModel(distil).state_dict(), pickled / "pytorch_model.bin")

    evil = models / "site" / "evil"
    evil.mkdir(parents=True)
    tokenizer.save_pretrained(evil)
    bert.save_pretrained(evil)
    torch.save({"weight": torch.zeros(2), "more": _Evil(folder / "victim")}, evil / "pytorch_model.bin")

    for place in (folder / "opinions", folder / "datasets" / "site" / "opinions"):
        place.mkdir(parents=True)
        for split, num_rows, seed in (("train", 90, 1), ("validation", 30, 2)):
            with open(place / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["متن", "برچسب", "ثابت"])
                writer.writerows([text, label, "یکی"] for text, label in zip(*sentences(num_rows, seed), strict=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
