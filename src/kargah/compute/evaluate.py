"""Measure a checkpoint: `python -m kargah.compute.evaluate CHECKPOINT DATASET_DIR --columns JSON [--split test]`.

Prints one JSON object: accuracy and macroF1 on the split, numRows, numParameters, sizeBytes of the weights, and
latencyMs, the median of single requests (tokenising included) on one thread. On an error it prints
`{"error": ..., "detail": ...}` and exits with 1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kargah.compute.classifier import Classifier, load_folder
from kargah.compute.data import Rows, read_split
from kargah.compute.failures import Code, TrainingFailed
from kargah.compute.measure import median_latency_ms, one_thread
from kargah.compute.model import be_silent, num_parameters
from kargah.compute.scores import evaluate_logits


def evaluate_folder(checkpoint: Path, dataset: Path, split: str, columns: dict[str, str]) -> dict[str, Any]:
    """Everything the program prints. Raises `TrainingFailed`."""
    classifier = load_folder(checkpoint)
    rows = read_rows(dataset, split, columns)
    labels = _numbers(rows, classifier)
    evaluation = evaluate_logits(classifier.logits(rows.texts, rows.pairs), labels)

    def answer(number: int) -> object:
        return classifier.probabilities([rows.texts[number]], rows.pairs[number : number + 1])

    with one_thread():
        latency_ms = median_latency_ms(answer, len(rows))
    return {
        "accuracy": evaluation.accuracy,
        **evaluation.metrics,
        "numRows": len(rows),
        "numParameters": num_parameters(classifier.model),
        "sizeBytes": sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")),
        "latencyMs": latency_ms,
    }


def read_rows(dataset: Path, split: str, columns: dict[str, str]) -> Rows:
    """Rows of a split. Raises `TrainingFailed` (`EMPTY_DATA`, …)."""
    rows, _ = read_split(dataset, split, columns, dataset.name)
    if not len(rows):
        raise TrainingFailed(Code.EMPTY_DATA, f"no rows in {split}")
    return rows


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every measuring program asks of the data."""
    parser.add_argument("dataset", type=Path, help="folder with one Parquet file a split")
    parser.add_argument("--split", default="test")
    parser.add_argument("--columns", type=json.loads, required=True, help='JSON: {"text": ..., "label": ...}')


def main(argv: list[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m kargah.compute.evaluate", description="Measure a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    data_arguments(parser)
    arguments = parser.parse_args(argv)
    be_silent()
    try:
        result = evaluate_folder(arguments.checkpoint, arguments.dataset, arguments.split, arguments.columns)
    except TrainingFailed as error:
        print(json.dumps({"error": error.code.value, "detail": error.detail, **error.params}, ensure_ascii=False))
        return 1
    print(json.dumps(result, ensure_ascii=False))
    return 0


def _numbers(rows: Rows, classifier: Classifier) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    number_of = {label: number for number, label in enumerate(classifier.labels)}
    for label in rows.labels:
        if label not in number_of:
            raise TrainingFailed(Code.UNKNOWN_LABEL, "the checkpoint does not know this label", label=label)
    return np.asarray([number_of[label] for label in rows.labels], dtype=np.int64)


if __name__ == "__main__":
    sys.exit(main())
