"""RunSpec: everything an attempt needs to know, frozen when the run is created and kept as `spec.json`.

On disk and over HTTP the names are camelCase; `to_json` and `from_json` translate. Paths are absolute, for a run
directory and what it reads stand on one machine.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast

SPEC_VERSION = 1

T = TypeVar("T")

TASKS = ("text-classification",)
"""Tasks the training program can do."""

OPTIMIZERS = ("adamw", "adam", "adafactor", "sgd", "rmsprop", "adagrad")
LR_SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
MIXED_PRECISION = ("no", "bf16", "fp16")
BATCHINGS = ("random", "bucketed")
VOCABULARIES = ("own", "fa")
"""The model's own vocabulary, or Kargah's Persian one grafted onto the model."""


class SpecError(ValueError):
    """A spec that cannot be read: `field` names the place, `problem` says what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model folder that `from_pretrained` loads: a base, a teacher. `kind` is `model` or `checkpoint`."""

    id: str
    path: str
    kind: str = "model"
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A data set folder with one Parquet file a split (`train.parquet`, `validation.parquet`, `test.parquet`).

    `columns` maps roles (`text`, `textPair`, `label`) to column names; `version` is the content hash of the folder;
    `labels` are the distinct labels in the order that numbers them. `validation_made` tells that the import divided the
    validation rows off by itself: a run that asks for a share of its own divides both anew.
    """

    id: str
    path: str
    version: str
    columns: dict[str, str]
    labels: list[str] = field(default_factory=list)
    validation_made: bool = False


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

    The update of a weight is `alpha / rank * B A`. `target_modules` of None means the linear layers of the encoder that
    the architecture is known by.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | None = None


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Hyper-parameters with every default resolved. Units stand with each field.

    `max_steps` wins over `epochs`. `eval_every_steps` and `checkpoint_every_steps` of None mean once an epoch.
    `embedding_learning_rate` of None is `learning_rate`. `alignment_epochs` belong to the vocabulary `fa`: epochs over
    the training texts, without labels, before the run's own. `dropout` of None is the model's own. `validation_split`
    of None leaves the data set's validation rows as they are, and takes a tenth where there are none. The distillation
    loss is
    `alpha * KL(teacher || student) at T, times T² + (1 - alpha) * cross entropy` (Hinton et al. 2015, "Distilling the
    Knowledge in a Neural Network").
    """

    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 5e-5
    optimizer: str = "adamw"
    lr_scheduler: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"
    max_length: int = 128
    seed: int = 42
    log_every_steps: int = 10
    eval_every_steps: int | None = None
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int = 2
    enable_early_stopping: bool = False
    early_stopping_patience: int = 3
    early_stopping_threshold: float = 0.0
    distillation_alpha: float = 0.5
    distillation_temperature: float = 2.0
    columns: dict[str, str] | None = None
    validation_split: float | None = None
    vocabulary: str = "own"
    embedding_learning_rate: float | None = None
    batching: str = "random"
    alignment_epochs: int = 2
    dropout: float | None = None
    lora: LoraConfig | None = None


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run, frozen. `resume_from` is a checkpoint folder that a restored run continues from exactly."""

    run_id: str
    name: str
    task: str
    base_model: ModelRef
    datasets: list[DatasetRef]
    config: TrainConfig
    teacher_model: ModelRef | None = None
    resume_from: str | None = None
    created_at: str | None = None
    kargah_version: str | None = None
    spec_version: int = SPEC_VERSION

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values with camelCase names."""
        return cast(dict[str, Any], _camel(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read a spec. Raises `SpecError` for a missing, unknown or wrongly typed field."""
        return _read(cls, value, "spec")


def to_camel(name: str) -> str:
    """`train_loss` → `trainLoss`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


# Names inside these are the user's own, not ours to rewrite.
_FREE_FORM = {"columns"}


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {to_camel(key): inner if key in _FREE_FORM else _camel(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_camel(inner) for inner in value]
    return value


_NESTED: dict[str, type] = {
    "base_model": ModelRef,
    "teacher_model": ModelRef,
    "config": TrainConfig,
    "lora": LoraConfig,
}


def _read(cls: type[T], value: Any, where: str) -> T:
    if not isinstance(value, dict):
        raise SpecError(where, "must be an object")
    fields = {to_camel(f.name): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise SpecError(f"{where}.{unknown[0]}", "is not a known field")
    given: dict[str, Any] = {}
    for name, f in fields.items():
        place = f"{where}.{name}"
        if name not in value:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise SpecError(place, "is missing")
            continue
        given[f.name] = _read_field(f.name, str(f.type), value[name], place)
    return cls(**given)


def _read_field(name: str, type_text: str, value: Any, place: str) -> Any:
    if value is None:
        if "None" not in type_text:
            raise SpecError(place, "must not be null")
        return None
    if name in _NESTED:
        return _read(_NESTED[name], value, place)
    if name == "datasets":
        if not isinstance(value, list) or not value:
            raise SpecError(place, "must be a list with at least one data set")
        return [_read(DatasetRef, item, f"{place}[{index}]") for index, item in enumerate(value)]
    wanted = type_text.split(" | ")[0].split("[")[0].removeprefix("<class '").removesuffix("'>")
    accepted: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "dict": (dict,),
        "list": (list,),
    }
    if not isinstance(value, accepted[wanted]) or (wanted != "bool" and isinstance(value, bool)):
        raise SpecError(place, f"must be of type {wanted}")
    given: Any = value
    return float(given) if wanted == "float" else given
