"""Small real things for the tests: Persian sentences, a WordPiece tokenizer, data sets, a sink that is a list."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kargah.compute.attempt import Ending, Progress, run_attempt
from kargah.compute.wishes import Wishes
from kargah.spec.control import Wish
from kargah.spec.layout import RunDir

GOOD = ["عالی", "خوب", "زیبا", "دل‌نشین", "بی‌نظیر", "خوش‌مزه"]
BAD = ["بد", "ضعیف", "خراب", "بی‌کیفیت", "ناامیدکننده", "بی‌مزه"]
THINGS = ["این فیلم", "کتاب تازه", "غذای رستوران", "گوشی من", "هوای امروز", "خدمات شرکت"]
FRAMES = [
    "{thing} {word} بود",
    "به نظر من {thing} خیلی {word} است",
    "{thing} واقعاً {word}!",
    "می‌گویند {thing} {word} شد",
]
POSITIVE = "خوش‌آیند"
NEGATIVE = "ناخوش‌آیند"


@dataclass
class ListSink:
    """Keeps the facts of an attempt in a list."""

    records: list[dict[str, Any]] = field(default_factory=list)

    def append(self, type: str, *, durable: bool = False, **fields: Any) -> None:
        json.dumps(fields, ensure_ascii=False)
        self.records.append({"type": type, **fields})

    def of(self, type: str) -> list[dict[str, Any]]:
        """The facts of one type."""
        return [record for record in self.records if record["type"] == type]

    def losses(self) -> dict[int, float]:
        """Logged training loss by step."""
        return {record["step"]: record["loss"] for record in self.of("metric")}

    def messages(self) -> str:
        """Everything logged for people."""
        return "\n".join(record["message"] for record in self.of("log"))


class WishAfter(Wishes):
    """Wishes to run until `step` optimiser steps are taken, and `wish` from then on."""

    def __init__(self, control: Path, progress: Progress, step: int, wish: Wish) -> None:
        super().__init__(control)
        self._progress = progress
        self._step = step
        self._then = wish

    def present(self) -> Wish:
        return self._then if self._progress.step >= self._step else Wish.RUN


class ReactingSink(ListSink):
    """Tells `react` of every fact it keeps, in the thread that it came from."""

    def __init__(self, react: Callable[[dict[str, Any]], object]) -> None:
        super().__init__()
        self._react = react

    def append(self, type: str, *, durable: bool = False, **fields: Any) -> None:
        super().append(type, durable=durable, **fields)
        self._react({"type": type, **fields})


def attempt(
    run_dir: RunDir,
    number: int = 1,
    *,
    end_after_step: int | None = None,
    wish: Wish = Wish.PAUSE,
    sink: ListSink | None = None,
    signals: bool = False,
) -> tuple[Ending, ListSink]:
    """Run an attempt here and now, perhaps with a wish that ends it after a step, perhaps obeying signals."""
    sink, progress = sink or ListSink(), Progress()
    wishes = Wishes(run_dir.control)
    if signals:
        wishes.obey_signals()
    if end_after_step is not None:
        wishes = WishAfter(run_dir.control, progress, end_after_step, wish)
    return run_attempt(run_dir, number, sink, wishes, progress), sink


def sentences(num_rows: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Persian opinions with labels that a tiny model can learn."""
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(num_rows):
        good = rng.random() < 0.5
        word = rng.choice(GOOD if good else BAD)
        texts.append(rng.choice(FRAMES).format(thing=rng.choice(THINGS), word=word))
        labels.append(POSITIVE if good else NEGATIVE)
    return texts, labels


def write_split(folder: Path, split: str, columns: dict[str, Sequence[Any]]) -> None:
    """Write one split of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), folder / f"{split}.parquet")


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of the words and letters of `texts`, laid out as BERT's.

    Not trained: a trainer breaks ties differently each time, and the tests want the same numbers every time.
    """
    words = sorted({word for text in texts for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)})
    letters = sorted({letter for word in words for letter in word})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def tree_bytes(folder: Path, *names: str) -> dict[str, bytes]:
    """The bytes of some files of a folder."""
    return {name: (folder / name).read_bytes() for name in names}
