"""What the drill trains: one recipe for each way in which a run goes through its rows, all with Kargah's own model."""

from dataclasses import dataclass
from typing import Any

MODEL = "kargah/mini-fa"
DATASET = "kargah/support-fa"

STEPS = 400
CHECKPOINT_EVERY_STEPS = 40

_EVERY: dict[str, Any] = {
    "maxSteps": STEPS,
    "learningRate": 5e-4,
    "maxLength": 32,
    "logEverySteps": 1,
    "evalEverySteps": 100,
    "checkpointEverySteps": CHECKPOINT_EVERY_STEPS,
    "keepCheckpoints": 2,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A run's configuration by name. `teacher` is the recipe whose unbroken run teaches."""

    name: str
    config: dict[str, Any]
    teacher: str | None = None


RECIPES = (
    Recipe("plain", {**_EVERY, "batchSize": 8, "seed": 3}),
    Recipe(
        "accumulated",
        {
            **_EVERY,
            "batchSize": 4,
            "gradientAccumulationSteps": 2,
            "batching": "bucketed",
            "lrScheduler": "cosine",
            "warmupSteps": 30,
            "weightDecay": 0.01,
            "enableEarlyStopping": True,
            "earlyStoppingPatience": 10,
            "seed": 4,
        },
    ),
    Recipe("adapters", {**_EVERY, "batchSize": 8, "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.1}, "seed": 5}),
    Recipe("distilled", {**_EVERY, "batchSize": 8, "distillationAlpha": 0.7, "seed": 6}, teacher="plain"),
)
