"""How long training stands still for a checkpoint: written behind training, against HF Trainer's own saving.

Both train the same random BERT of 100 M parameters with AdamW on the same rows, in this process, one after the other.
Kargah digests every file and brings it to the disk; the peer does neither.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bench.report import Goal, Row, Table, load_note
from kargah.compute.attempt import Progress, run_attempt
from kargah.compute.model import be_silent
from kargah.compute.wishes import Wishes
from kargah.spec.layout import RunDir, write_json
from kargah.spec.run_spec import DatasetRef, ModelRef, RunSpec, TrainConfig

GOAL_SECONDS = 0.5
VOCABULARY_SIZE = 20_000
BATCH_SIZE = 4
WORDS_A_ROW = 14
LABELS = ["alef", "be"]

KARGAH = "Kargah, written behind training, digests, on the disk"
PEER = f"HF Trainer {transformers.__version__}, its own saving"
_STILL = "training stands still"
_STANDS = "until the checkpoint stands"
_STEP = "a step"
_MEANWHILE = "a step while it is written"
_RATIO = "stands still longer than Kargah by"


def measure(*, quick: bool) -> Iterator[Table]:
    """One table, in a folder that is removed. About 2 minutes when `quick`, else 4."""
    num_checkpoints, every_steps = (2, 8) if quick else (5, 16)
    be_silent()
    with tempfile.TemporaryDirectory(prefix="kargah-bench-") as name:
        place = Path(name)
        num_parameters = _make_model(place / "model")
        texts = _make_rows(place / "rows", num_checkpoints * every_steps * BATCH_SIZE)
        load = os.getloadavg()
        config = TrainConfig(
            max_steps=num_checkpoints * every_steps,
            batch_size=BATCH_SIZE,
            log_every_steps=1,
            checkpoint_every_steps=every_steps,
            keep_checkpoints=1,
            validation_split=0.0,
        )
        ours = _kargah(place, config, num_checkpoints * every_steps)
        theirs = _peer(place, num_checkpoints * every_steps, every_steps, texts)
    table = Table(
        f"A checkpoint of a BERT of {num_parameters / 1e6:.0f} M parameters with AdamW, every {every_steps} steps",
        {_STILL: "{:.2f} s", _STANDS: "{:.2f} s", _STEP: "{:.2f} s", _MEANWHILE: "{:.2f} s", _RATIO: "{:.1f}"},
    )
    table.rows = [Row(KARGAH, ours), Row(PEER, theirs)]
    still = table.row(KARGAH).median(_STILL)
    for row in table.rows:
        row.values[_RATIO] = [seconds / still for seconds in row.values[_STILL]]
    table.goals = [Goal("seconds that training stands still, the worst", max(ours[_STILL]), GOAL_SECONDS, at_most=True)]
    slower = statistics.mean(ours[_MEANWHILE]) - statistics.mean(ours[_STEP])
    lost = slower * len(ours[_MEANWHILE]) / len(ours[_STILL]) + statistics.mean(ours[_STILL])
    peers = statistics.mean(theirs[_STILL])
    table.notes = [
        f"all that a checkpoint costs, slower steps counted: {lost:.2f} s; the peer's: {peers:.2f} s",
        load_note(load),
    ]
    yield table


class _Times:
    """A sink that notes when each fact was told."""

    def __init__(self) -> None:
        self.facts: list[tuple[float, str, dict[str, Any]]] = []

    def append(self, type: str, *, durable: bool = False, **fields: Any) -> None:
        """Take a fact."""
        self.facts.append((time.perf_counter(), type, fields))


def _kargah(place: Path, config: TrainConfig, num_steps: int) -> dict[str, list[float]]:
    """Seconds by column. A step is one of a write when it begins before the checkpoint of an earlier one stands."""
    dataset = DatasetRef("rows", str(place / "rows"), "v1", {"text": "text", "label": "label"})
    spec = RunSpec("bench", "bench", "text-classification", ModelRef("bench", str(place / "model")), [dataset], config)
    run_dir = RunDir(place / "run")
    run_dir.root.mkdir()
    write_json(run_dir.spec, spec.to_json())
    sink = _Times()
    run_attempt(run_dir, 1, sink, Wishes(run_dir.control), Progress())
    ended = {fields["step"]: at for at, type, fields in sink.facts if type == "metric"}
    written = [fields["details"] for _, _, fields in sink.facts if fields.get("key") == "checkpointWritten"]
    stood = {fields["step"]: at for at, type, fields in sink.facts if type == "checkpoint"}
    still = dict(zip(stood, (details["stoodStillSeconds"] for details in written), strict=True))
    columns: dict[str, list[float]] = {
        _STILL: list(still.values()),
        _STANDS: [details["seconds"] + details["stoodStillSeconds"] for details in written],
        _STEP: [],
        _MEANWHILE: [],
    }
    for step in range(3, num_steps + 1):  # the first two also make what the others reuse
        seconds = ended[step] - ended[step - 1] - still.get(step - 1, 0.0)
        is_meanwhile = any(begun < step and ended[step - 1] < at for begun, at in stood.items())
        columns[_MEANWHILE if is_meanwhile else _STEP].append(seconds)
    return columns


class _Watch(TrainerCallback):
    """Seconds of every step, and of every save that follows one."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.saves: list[float] = []
        self._since = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._since)
        self._since = now

    def on_save(self, *_: Any, **__: Any) -> None:
        self.saves.append(time.perf_counter() - self._since)


def _peer(place: Path, num_steps: int, every_steps: int, texts: list[str]) -> dict[str, list[float]]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place / "model")
    rows = [{**tokenizer(text), "labels": number % 2} for number, text in enumerate(texts)]
    watch = _Watch()
    arguments = TrainingArguments(
        output_dir=str(place / "peer"),
        max_steps=num_steps,
        per_device_train_batch_size=BATCH_SIZE,
        save_strategy="steps",
        save_steps=every_steps,
        save_total_limit=1,
        optim="adamw_torch_fused",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(place / "model", num_labels=2),
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {_STILL: watch.saves, _STANDS: watch.saves, _STEP: watch.steps[2:], _MEANWHILE: []}


def _make_model(folder: Path) -> int:
    """A random BERT of 12 layers × 768 with a tokenizer of made-up words. Returns its parameters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(_word(number) for number in range(VOCABULARY_SIZE - 5))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)  # type: ignore[no-untyped-call]
    made.save_pretrained(folder)
    model = BertModel(BertConfig(vocab_size=VOCABULARY_SIZE))
    model.save_pretrained(folder)
    return int(model.num_parameters())


def _make_rows(folder: Path, num_rows: int) -> list[str]:
    texts = [
        " ".join(_word((number * WORDS_A_ROW + place) * 7 % (VOCABULARY_SIZE - 5)) for place in range(WORDS_A_ROW))
        for number in range(num_rows)
    ]
    folder.mkdir()
    labels = [LABELS[number % 2] for number in range(num_rows)]
    pq.write_table(pa.table({"text": texts, "label": labels}), folder / "train.parquet")
    return texts


def _word(number: int) -> str:
    return f"w{number}"
