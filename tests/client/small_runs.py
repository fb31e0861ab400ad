"""Runs of the tiny model that last some seconds."""

from kargah.client import TrainingConfig

COLUMNS = {"text": "متن", "label": "برچسب"}
CONFIG = TrainingConfig(
    max_steps=240,
    batch_size=24,
    learning_rate=3e-3,
    max_length=24,
    seed=3,
    log_every_steps=1,
    eval_every_steps=120,
    checkpoint_every_steps=60,
)
