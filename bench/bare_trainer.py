"""The peer of `bench.overhead`: HF Trainer as it is, with no journal, no hooks, no server.

`python -m bench.bare_trainer MODEL DATA BATCH_SIZE MAX_LENGTH FIRST_STEP LAST_STEP` prints the seconds from the end of
the first step to the end of the last as JSON.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)


class _Clock(TrainerCallback):
    """When the two steps ended."""

    def __init__(self, first_step: int, last_step: int) -> None:
        self._steps = (first_step, last_step)
        self.at: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self._steps:
            self.at.append(time.perf_counter())


def main(model: Path, data: Path, batch_size: int, max_length: int, first_step: int, last_step: int) -> None:
    """Train, and print what it took."""
    logging.set_verbosity_error()
    rows = pq.read_table(data / "train.parquet", columns=["text", "label"]).to_pydict()
    labels = sorted(set(rows["label"]))
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = [
        {**tokenizer(text, truncation=True, max_length=max_length), "labels": labels.index(label)}
        for text, label in zip(rows["text"], rows["label"], strict=True)
    ]
    clock = _Clock(first_step, last_step)
    with tempfile.TemporaryDirectory(prefix="kargah-bench-") as folder:
        Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(
                model, num_labels=len(labels), dtype=torch.float32
            ),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=last_step,
                per_device_train_batch_size=batch_size,
                optim="adamw_torch_fused",
                logging_strategy="no",
                eval_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=encoded,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[clock],
        ).train()
    print(json.dumps({"seconds": clock.at[1] - clock.at[0]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(number) for number in sys.argv[3:7]))
