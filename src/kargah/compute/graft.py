"""Persian words for an encoder that knows none: another tokenizer, and embeddings that start with a meaning.

An English encoder's tokenizer falls apart into single letters on Persian (49 tokens a message instead of 17 on the
built-in set), whose embeddings mean nothing. `vocabulary: "fa"` replaces it:

1. A WordPiece vocabulary of the lexicon's words and endings, of further words that the run's own training texts repeat,
   and of every single letter. Text is normalised first: NFKC, Arabic letters to Persian ones, ZWNJ, kashida and
   diacritics dropped, lower case. Nothing is drawn by chance: equal texts give an equal vocabulary (the trainers of the
   tokenizers library do not, from one process to the next).
2. A new row of the embedding is the mean of the rows of its English gloss: the idea of WECHSEL (Minixhofer, Paischer,
   Rekabsaz 2022, "Effective initialization of subword embeddings for cross-lingual transfer") with a dictionary in
   place of aligned vectors. A piece without a gloss takes the mean of the rows that the old tokenizer cuts it into:
   Fast Vocabulary Transfer (Gee, Zugarini, Rigutini, Torroni 2022).

Special tokens keep their rows. The rest of the network is as it was.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import cast

import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kargah.compute.failures import Code, TrainingFailed

CONTINUES = "##"
MAX_FURTHER_WORDS = 20_000
MIN_FREQUENCY = 2
MAX_WORD_LETTERS = 60
_LETTERS = (("ي", "ی"), ("ى", "ی"), ("ك", "ک"), ("ۀ", "ه"), ("ة", "ه"), ("أ", "ا"), ("إ", "ا"), ("ؤ", "و"))
_ALPHABET = "آابپتثجچحخدذرزژسشصضطظعغفقکگلمنوهیءئ0123456789۰۱۲۳۴۵۶۷۸۹abcdefghijklmnopqrstuvwxyz.,!?؟،؛:()«»-/%"
_INVISIBLE = r"[\u200c\u200d\u0640\u064b-\u065f\u0670]"
_ROLES = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Grafted:
    """What a graft did: size of the new vocabulary, and how many of its rows started from a gloss."""

    vocabulary_size: int
    num_glossed: int


@cache
def lexicon() -> dict[str, str]:
    """Persian form to English gloss, from `lexicon/fa_en.tsv`."""
    text = resources.files("kargah.compute").joinpath("lexicon", "fa_en.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t", 1) for line in text.splitlines())


def persian_tokenizer(texts: Iterable[str], old: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A Persian tokenizer with the special tokens of `old`; words beside the lexicon's are those `texts` repeat.

    Raises `NOT_SUPPORTED` for a tokenizer without the special tokens of an encoder.
    """
    special = _special_tokens(old)
    words = set(lexicon())
    letters = set(_ALPHABET)
    for word, count in _words_of(texts):
        letters.update(word)
        if count >= MIN_FREQUENCY and len(words) < len(lexicon()) + MAX_FURTHER_WORDS:
            words.add(word)
    words |= letters | {CONTINUES + letter for letter in letters}
    # Special tokens first, in their old order; then by spelling.
    numbers = {word: number for number, word in enumerate(special + sorted(words - set(special)))}
    tokenizer = _bare(WordPiece(numbers, unk_token=old.unk_token, max_input_chars_per_word=MAX_WORD_LETTERS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{old.cls_token} $A {old.sep_token}",
        pair=f"{old.cls_token} $A {old.sep_token} $B:1 {old.sep_token}:1",
        special_tokens=[(token, numbers[token]) for token in (str(old.cls_token), str(old.sep_token))],
    )
    if numbers[str(old.pad_token)] != old.pad_token_id:
        raise TrainingFailed(Code.NOT_SUPPORTED, "its padding token cannot keep its number", field="vocabulary")
    names = {role: getattr(old, role) for role in _ROLES if getattr(old, role) is not None}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_input_names=list(old.model_input_names), **names
    )


def graft(model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerFast) -> Grafted:
    """Give `model` the vocabulary of `new` in place of `old`'s, each row started as the module's docstring says."""
    glosses = lexicon()
    before = cast(nn.Embedding, model.get_input_embeddings()).weight.detach().clone()
    mean = before.mean(dim=0)
    vocabulary = sorted(new.get_vocab().items(), key=lambda item: item[1])
    special = set(new.all_special_tokens)
    rows = torch.empty(len(vocabulary), before.shape[1], dtype=before.dtype)
    num_glossed = 0
    for word, number in vocabulary:
        if word in special:
            rows[number] = before[old.convert_tokens_to_ids(word)]
            continue
        num_glossed += word in glosses
        text = glosses.get(word, word.removeprefix(CONTINUES))
        pieces = old(text, add_special_tokens=False)["input_ids"]
        rows[number] = before[pieces].mean(dim=0) if pieces else mean
    model.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    with torch.no_grad():
        cast(nn.Embedding, model.get_input_embeddings()).weight.copy_(rows)
    return Grafted(len(vocabulary), num_glossed)


def _special_tokens(old: PreTrainedTokenizerBase) -> list[str]:
    for role in ("cls_token", "sep_token", "pad_token", "unk_token"):
        if getattr(old, role) is None:
            raise TrainingFailed(Code.NOT_SUPPORTED, f"the tokenizer has no {role}", field="vocabulary")
    tokens = {str(getattr(old, role)) for role in _ROLES if getattr(old, role) is not None}
    return sorted(tokens, key=lambda token: cast(int, old.convert_tokens_to_ids(token)))


def _words_of(texts: Iterable[str]) -> list[tuple[str, int]]:
    """Words of normalised texts with their counts, the most frequent first, equals by spelling."""
    bare = _bare(WordPiece({"": 0}, unk_token=""))
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in bare.pre_tokenizer.pre_tokenize_str(bare.normalizer.normalize_str(text)))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _bare(model: WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            *(normalizers.Replace(arabic, persian) for arabic, persian in _LETTERS),
            normalizers.Replace(Regex(_INVISIBLE), ""),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
