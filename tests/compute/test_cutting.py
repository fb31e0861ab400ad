"""Long texts cut before they are tokenised: the tokens kept are those of the whole text, whatever the tokenizer."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kargah.compute.cutting import LETTERS_PER_TOKEN, cut_texts
from kargah.compute.data import Rows
from kargah.compute.encode import encode_rows
from kargah.spec.run_spec import DatasetRef

from .conftest import MakeRun
from .tiny import attempt, make_tokenizer, sentences, write_split

TEXTS, _ = sentences(300)
WORDS = [word for text in TEXTS for word in text.split(" ")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def framed(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return framed(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return framed(tokenizer)


def without_words() -> PreTrainedTokenizerFast:
    """As Llama's: the whole text is one word, spaces are letters."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return framed(tokenizer)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "wordpiece": lambda: make_tokenizer(TEXTS), "byte-level": byte_level, "unigram": unigram, "no words": without_words,
}  # fmt: skip


def long_text(rng: random.Random, num_letters: int) -> str:
    """Words and now and then something odd: runs of spaces, lines, a word as long as many lines."""
    parts: list[str] = []
    while sum(map(len, parts)) < num_letters:
        parts.append(rng.choice(WORDS) + rng.choice([" "] * 30 + ["  ", "\n", " \n\n ", "، ", "\u200c"]))
        if rng.random() < 0.01:
            parts.append("".join(rng.choices("ابپتث", k=rng.randint(90, 200))) + " ")
    return "".join(parts)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_kept_are_those_of_the_whole_text_and_of_the_whole_pair(name: str) -> None:
    tokenizer, rng = TOKENIZERS[name](), random.Random(4)
    for max_length in (8, 11):  # an odd and an even number of tokens to share between the two of a pair
        bound = LETTERS_PER_TOKEN * max_length
        sizes = [10, bound + 5, 3 * bound]
        texts = [long_text(rng, size) for size in sizes for _ in sizes]
        pairs = [long_text(rng, size) for _ in sizes for size in sizes]
        joined = "".join(rng.choices(WORDS, k=bound // 2))
        texts += ["ا" * 3 * bound, ("ب" * 150 + " ") * 20, long_text(rng, 2 * bound), "  ", " " * 3 * bound, joined]
        pairs += [long_text(rng, 3 * bound), "خوب", "ا" * 2 * bound, long_text(rng, 2 * bound), "خوب", joined[9:]]
        cut, _ = cut_texts(tokenizer, texts, None, max_length)
        cut_one, cut_other = cut_texts(tokenizer, texts, pairs, max_length)
        assert cut_other is not None
        options: dict[str, Any] = {"truncation": True, "max_length": max_length, "return_token_type_ids": True}
        assert tokenizer(cut, **options).data == tokenizer(texts, **options).data
        assert tokenizer(cut_one, cut_other, **options).data == tokenizer(texts, pairs, **options).data
        # Something was gained: texts of words are cut near the bound, and a short one is left as it is.
        assert max(len(given) for given in cut[6:9]) < 2 * bound
        assert cut[0] == texts[0]
        assert len(cut_one[8]) < len(texts[8])
        assert len(cut_other[8]) < len(pairs[8])


def test_share_of_cut_rows_is_that_of_the_whole_texts() -> None:
    tokenizer, rng = make_tokenizer(TEXTS), random.Random(9)
    texts = [TEXTS[0], long_text(rng, 9000), "ا" * 9000, TEXTS[1], long_text(rng, 700)]
    rows = Rows(texts, [], ["x"] * len(texts))
    encoded, facts = encode_rows(
        tokenizer, rows, ["x"], max_length=16, token_types=False, num_embeddings=len(tokenizer)
    )
    assert facts.truncated_share == 2 / 5  # a word too long to be known is one token
    assert encoded.lengths.tolist()[1:3] == [16, 3]


class Watching(PreTrainedTokenizerFast):
    """Remembers the longest text it was given."""

    longest = 0

    def __call__(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        given = [*([text] if isinstance(text, str) else text), *(text_pair or ())]
        self.longest = max([self.longest, *map(len, given)])
        return super().__call__(text, text_pair, **options)


def test_rows_are_never_tokenised_in_all_their_length() -> None:
    watching = Watching(**make_tokenizer(TEXTS).init_kwargs, tokenizer_object=make_tokenizer(TEXTS).backend_tokenizer)
    huge = long_text(random.Random(3), 20_000)
    for texts, pairs in (([huge, TEXTS[0]], []), ([huge, TEXTS[0]], [TEXTS[1], huge])):
        encode_rows(
            watching, Rows(texts, pairs, ["x", "x"]), ["x"], max_length=16, token_types=False, num_embeddings=10_000
        )
        assert 0 < watching.longest < 2000


def test_a_tokenizer_that_keeps_the_end_of_a_text_is_given_all_of_it() -> None:
    tokenizer = make_tokenizer(TEXTS)
    tokenizer.truncation_side = "left"
    text = long_text(random.Random(1), 5000)
    assert cut_texts(tokenizer, [text], None, 8) == ([text], None)


def test_a_text_of_a_megabyte_is_cut_to_what_is_needed_and_trains(make_run: MakeRun, tmp_path: Path) -> None:
    texts, labels = sentences(20)
    huge = " ".join(random.Random(2).choices(WORDS, k=110_000))
    assert len(huge.encode()) > 1_000_000
    for name, columns in (("one", {"text": "a"}), ("pair", {"text": "a", "textPair": "b"})):
        write_split(tmp_path / name, "train", {"a": [huge, *texts], "b": [*texts, huge], "l": [labels[1], *labels]})
        dataset = DatasetRef(name, str(tmp_path / name), "v", {**columns, "label": "l"})
        ending, sink = attempt(make_run(spec={"datasets": [dataset]}, validation_split=0.0, max_steps=2))
        assert ending.step == 2
        assert "% cut" in sink.messages()
    (cut,), _ = cut_texts(make_tokenizer(TEXTS), [huge], None, 24)
    assert len(cut) <= LETTERS_PER_TOKEN * 24
