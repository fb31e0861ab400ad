"""Very long texts cut before they are tokenised, where nothing of what is kept can change.

A tokenizer reads a text to its end even when all but the first tokens are dropped: half a second a megabyte. Of a pair
it also puts every dropped part of one text beside every one of the other, which takes gigabytes. So a long text is cut
before a space and looked at: are its tokens fewer than wanted (one token may stand for a word of any length), twice as
many letters are taken. Words end at spaces, so the tokens before the cut are those of the whole text. A text without
spaces is tokenised once in whole, alone, and cut where one of its tokens ends.

Of a pair the longer text gives way first, so the one that is longer must stay longer.
"""

from transformers import PreTrainedTokenizerBase

LETTERS_PER_TOKEN = 16
"""Letters a token to begin with; more than tokens have in any language written with spaces."""

# Tokens beyond those needed, in case a tokenizer joins something across the cut.
MARGIN = 8
_SPACES = " \n"


def cut_texts(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, max_length: int
) -> tuple[list[str], list[str] | None]:
    """`texts` and `pairs` such that truncation to `max_length` tokens gives what it gave, and cuts the same rows."""
    if tokenizer.truncation_side != "right":
        return texts, pairs
    if pairs is None:
        return [_prefix(tokenizer, text, max_length, max_length) for text in texts], None
    fitted = [_fit(tokenizer, text, pair, max_length) for text, pair in zip(texts, pairs, strict=True)]
    return [text for text, _ in fitted], [pair for _, pair in fitted]


def _fit(tokenizer: PreTrainedTokenizerBase, text: str, pair: str, max_length: int) -> tuple[str, str]:
    one, other = (_prefix(tokenizer, given, max_length, max_length) for given in (text, pair))
    if len(one) == len(text) and len(other) == len(pair):
        return text, pair
    # Where both are cut, who is longer decides about one token: the odd one.
    first_is_longer = len(other) == len(pair) or (
        len(one) < len(text) and _num_tokens(tokenizer, text) > _num_tokens(tokenizer, pair)
    )
    if first_is_longer:
        return _prefix(tokenizer, text, max(max_length, _num_tokens(tokenizer, other)), max_length), other
    return one, _prefix(tokenizer, pair, max(max_length, _num_tokens(tokenizer, one)), max_length)


def _prefix(tokenizer: PreTrainedTokenizerBase, text: str, wanted: int, max_length: int) -> str:
    """The text up to somewhere behind its first `wanted` tokens and a margin; all of it when it has no more."""
    size = LETTERS_PER_TOKEN * max_length
    if len(text) <= size:
        return text
    while size < len(text):
        end = _end_of_word(text, size)
        if end is None:
            break
        if _num_tokens(tokenizer, text[:end]) >= wanted + MARGIN:
            return text[:end]
        size *= 2
    return _cut_behind_token(tokenizer, text, wanted + MARGIN)


def _end_of_word(text: str, size: int) -> int | None:
    """The last place before a space in the second half of the first `size` letters."""
    for end in range(size, size // 2, -1):
        if text[end] in _SPACES and text[end - 1] not in _SPACES:
            return end
    return None


def _cut_behind_token(tokenizer: PreTrainedTokenizerBase, text: str, number: int) -> str:
    if not tokenizer.is_fast:  # tokenizers written in Python do not say where their tokens stand
        return text
    offsets = _encode(tokenizer, text, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[number - 1][1]] if len(offsets) > number else text


def _num_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(_encode(tokenizer, text)["input_ids"])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, **more: bool) -> dict[str, list[tuple[int, int]]]:
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **more,
    )
    return dict(encoded)
