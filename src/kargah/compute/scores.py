"""How well predictions hit: accuracy, macro F1, cross entropy. Plain numpy."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pass over validation rows. `val_loss` is the mean cross entropy in nats, whatever the training loss is."""

    val_loss: float
    accuracy: float
    metrics: dict[str, float] = field(default_factory=dict)


def evaluate_logits(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Evaluation:
    """Score logits of shape [rows, classes] against class numbers of shape [rows]; needs at least one row."""
    predicted = logits.argmax(axis=1)
    return Evaluation(
        val_loss=cross_entropy(logits, labels),
        accuracy=float((predicted == labels).mean()),
        metrics={"macroF1": macro_f1(labels, predicted)},
    )


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean cross entropy in nats, in double precision."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(wide).sum(axis=1))
    return float((log_total - wide[np.arange(len(labels)), labels]).mean())


def macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur in the truth or in the predictions (as scikit-learn does by default)."""
    scores = []
    for number in np.union1d(labels, predicted):
        hits = int(((labels == number) & (predicted == number)).sum())
        wrong = int((labels == number).sum()) + int((predicted == number).sum()) - 2 * hits
        scores.append(2 * hits / (2 * hits + wrong))
    return float(np.mean(scores))
