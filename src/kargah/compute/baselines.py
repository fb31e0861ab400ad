"""What a model must beat: `python -m kargah.compute.baselines DATASET_DIR --columns JSON [--split test]`.

Prints `{"majority": {...}, "tfidf": {...}}`, each measured as `kargah.compute.evaluate` measures a checkpoint. Both
learn from `train.parquet`. `majority` always says the most frequent label. `tfidf` is a logistic regression on
character n-grams inside words, 1 to 5 letters, which needs no tokenizer and copes with Persian's joined suffixes;
the two texts of a pair are counted apart. sizeBytes is the pickled predictor.
"""

import argparse
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack  # type: ignore[import-untyped, unused-ignore]
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from kargah.compute.data import Rows
from kargah.compute.evaluate import data_arguments, read_rows
from kargah.compute.failures import TrainingFailed
from kargah.compute.measure import median_latency_ms
from kargah.compute.scores import macro_f1


def measure_baselines(dataset: Path, split: str, columns: dict[str, str]) -> dict[str, Any]:
    """Both baselines, learnt and measured. Raises `TrainingFailed`."""
    train = read_rows(dataset, "train", columns)
    rows = read_rows(dataset, split, columns)
    return {"majority": _majority(train, rows), "tfidf": _tfidf(train, rows)}


def main(argv: list[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m kargah.compute.baselines", description="Measure baselines.")
    data_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        result = measure_baselines(arguments.dataset, arguments.split, arguments.columns)
    except TrainingFailed as error:
        print(json.dumps({"error": error.code.value, "detail": error.detail, **error.params}, ensure_ascii=False))
        return 1
    print(json.dumps(result, ensure_ascii=False))
    return 0


def _majority(train: Rows, rows: Rows) -> dict[str, Any]:
    predictor = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(train), 1)), train.labels)

    def predict(some: Rows) -> list[str]:
        return list(predictor.predict(np.zeros((len(some), 1))))

    return _measured(predict, rows, num_parameters=0, size_bytes=len(pickle.dumps(predictor)))


def _tfidf(train: Rows, rows: Rows) -> dict[str, Any]:
    vectorizers = [_vectorizer() for _ in _columns(train)]
    features = [vectorizer.fit_transform(texts) for vectorizer, texts in zip(vectorizers, _columns(train), strict=True)]
    predictor = LogisticRegression(C=10.0, max_iter=1000).fit(csr_matrix(hstack(features)), train.labels)

    def predict(some: Rows) -> list[str]:
        parts = [vectorizer.transform(texts) for vectorizer, texts in zip(vectorizers, _columns(some), strict=True)]
        return list(predictor.predict(csr_matrix(hstack(parts))))

    return _measured(
        predict,
        rows,
        num_parameters=int(predictor.coef_.size + predictor.intercept_.size),
        size_bytes=len(pickle.dumps((vectorizers, predictor))),
    )


def _vectorizer() -> TfidfVectorizer:
    # Letters as they are: lower-casing means nothing to Persian, and the zero-width non-joiner tells words apart.
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True, lowercase=False, dtype=np.float32)


def _columns(rows: Rows) -> list[list[str]]:
    return [rows.texts, rows.pairs] if rows.pairs else [rows.texts]


def _measured(
    predict: Callable[[Rows], list[str]], rows: Rows, *, num_parameters: int, size_bytes: int
) -> dict[str, Any]:
    names = sorted(set(rows.labels))
    predicted = predict(rows)
    names += sorted(set(predicted) - set(names))
    truth_numbers = np.asarray([names.index(label) for label in rows.labels], dtype=np.int64)
    predicted_numbers = np.asarray([names.index(label) for label in predicted], dtype=np.int64)
    return {
        "accuracy": float((truth_numbers == predicted_numbers).mean()),
        "macroF1": macro_f1(truth_numbers, predicted_numbers),
        "numRows": len(rows),
        "numParameters": num_parameters,
        "sizeBytes": size_bytes,
        "latencyMs": median_latency_ms(lambda number: predict(rows.take([number])), len(rows)),
    }


if __name__ == "__main__":
    sys.exit(main())
