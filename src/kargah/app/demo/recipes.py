"""What the demo trains with. Chosen on the validation split; the measurements are in `docs/lab-log.md`."""

from typing import Any

TEACHER: dict[str, Any] = {
    "vocabulary": "fa",
    "epochs": 4,
    "alignmentEpochs": 2,
    "batchSize": 16,
    "learningRate": 1e-4,
    "embeddingLearningRate": 5e-4,
    "weightDecay": 0.01,
    "warmupSteps": 60,
    "maxLength": 64,
    "batching": "bucketed",
    "logEverySteps": 10,
    "seed": 1,
}
STUDENT: dict[str, Any] = {
    "epochs": 5,
    "batchSize": 32,
    "learningRate": 1e-3,
    "warmupSteps": 40,
    "maxLength": 64,
    "batching": "bucketed",
    "logEverySteps": 10,
    "seed": 1,
}
DISTILLATION: dict[str, Any] = {"distillationAlpha": 0.8, "distillationTemperature": 2.0, "epochs": 10}
"""What a distilled run changes of the student's recipe: soft targets overfit later, so it may learn for longer."""
