"""Predict from the command line: `python -m kargah.compute.predict CHECKPOINT`.

Reads JSON lines on standard input, each `{"text": ..., "textPair"?: ...}` or a plain JSON string, and answers each at
once with `{"label", "score", "scores": [{"label", "score"}, ...]}`, best first. A line that is neither is answered with
`{"error": "INVALID_INPUT", "line": n}` and makes the exit code 1.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from kargah.compute.classifier import Classifier, load_folder
from kargah.compute.failures import TrainingFailed
from kargah.compute.model import be_silent


def main(argv: list[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m kargah.compute.predict", description="Classify JSON lines.")
    parser.add_argument("checkpoint", type=Path)
    arguments = parser.parse_args(argv)
    be_silent()
    try:
        classifier = load_folder(arguments.checkpoint)
    except TrainingFailed as error:
        print(json.dumps({"error": error.code.value, "detail": error.detail}, ensure_ascii=False))
        return 1
    return 1 if answer_lines(classifier, sys.stdin, sys.stdout) else 0


def answer_lines(classifier: Classifier, lines: Iterable[str], output: TextIO) -> int:
    """Answer every line. Returns how many could not be understood."""
    num_bad = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        request = _read(line)
        if request is None:
            num_bad += 1
            answer: dict[str, Any] = {"error": "INVALID_INPUT", "line": number}
        else:
            answer = predict_one(classifier, *request)
        print(json.dumps(answer, ensure_ascii=False), file=output, flush=True)
    return num_bad


def predict_one(classifier: Classifier, text: str, pair: str | None = None) -> dict[str, Any]:
    """Label, score and all scores of one text or pair; scores are probabilities."""
    probabilities = classifier.probabilities([text], [pair] if pair is not None else [])[0]
    scores = [
        {"label": classifier.labels[number], "score": float(probabilities[number])}
        for number in sorted(range(len(probabilities)), key=lambda number: -probabilities[number])
    ]
    return {**scores[0], "scores": scores}


def _read(line: str) -> tuple[str, str | None] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if isinstance(value, str):
        return value, None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return None
    pair = value.get("textPair")
    return (value["text"], pair) if pair is None or isinstance(pair, str) else None


if __name__ == "__main__":
    sys.exit(main())
