"""What the demo trains with. Chosen on the validation split; the measurements are in `docs/lab-log.md`."""

from typing import Any

TEACHER: dict[str, Any] = {
    "epochs": 5,
    "batchSize": 16,
    "learningRate": 3e-4,
    "warmupSteps": 60,
    "maxLength": 64,
    "logEverySteps": 10,
    "seed": 1,
}
STUDENT: dict[str, Any] = {
    "epochs": 12,
    "batchSize": 32,
    "learningRate": 2e-3,
    "warmupSteps": 60,
    "maxLength": 64,
    "logEverySteps": 10,
    "seed": 1,
}
TEACHER_ALPHA: dict[str, Any] = {"distillationAlpha": 0.7, "distillationTemperature": 3.0}
