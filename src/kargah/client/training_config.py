"""The hyper-parameters of a run, as a program asks for them. `docs/training.md` says what each does."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Lora(BaseModel):
    """Low-rank adapters (Hu et al. 2021). `target_modules` of None: the layers the architecture is known by."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | None = None


class TrainingConfig(BaseModel):
    """Hyper-parameters; what is None has the server's default. `max_steps` wins over `epochs`.

    `columns` maps roles (`text`, `textPair`, `label`) to columns and wins over the data set's own mapping.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    optimizer: str | None = None
    lr_scheduler: str | None = None
    warmup_steps: int | None = None
    weight_decay: float | None = None
    gradient_accumulation_steps: int | None = None
    max_grad_norm: float | None = None
    mixed_precision: str | None = None
    max_length: int | None = None
    seed: int | None = None
    log_every_steps: int | None = None
    eval_every_steps: int | None = None
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int | None = None
    enable_early_stopping: bool | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float | None = None
    distillation_alpha: float | None = None
    distillation_temperature: float | None = None
    lora: Lora | None = None
    columns: dict[str, str] | None = None
    validation_split: float | None = None
    vocabulary: str | None = None
    alignment_epochs: int | None = None
    embedding_learning_rate: float | None = None
    batching: str | None = None
    dropout: float | None = None
