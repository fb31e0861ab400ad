"""What crosses HTTP in the runs room."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from kargah.assets.catalog import ID_SCHEMA
from kargah.ground.web.envelope import Body, Wire
from kargah.spec import run_spec

AssetId = Annotated[str, Field(json_schema_extra=ID_SCHEMA)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Ref(Body):
    """An asset by its id."""

    id: AssetId
    kind: Literal["model", "dataset", "checkpoint"] | None = None


def _as_ref(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


AssetRef = Annotated[
    Ref,
    BeforeValidator(_as_ref),
    WithJsonSchema({"anyOf": [{"type": "string", **ID_SCHEMA}, {"$ref": "#/components/schemas/Ref"}]}),
]
"""An asset by its id, or by an object with its id."""


class LoraBody(Body):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Annotated[Finite, Field(gt=0)] = 16
    dropout: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    target_modules: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=200)]], Field(min_length=1, max_length=100)
        ]
        | None
    ) = None


def _document_config(schema: dict[str, Any]) -> None:
    """Name the default of every field, and the words that those of a fixed vocabulary take."""
    for field in dataclasses.fields(run_spec.TrainConfig):
        described = schema["properties"].get(run_spec.to_camel(field.name))
        if described is not None and field.default is not None:
            described["default"] = field.default
    for name, words in (
        ("optimizer", run_spec.OPTIMIZERS),
        ("lrScheduler", run_spec.LR_SCHEDULERS),
        ("mixedPrecision", run_spec.MIXED_PRECISION),
        ("vocabulary", run_spec.VOCABULARIES),
        ("batching", run_spec.BATCHINGS),
    ):
        schema["properties"][name]["enum"] = [*words, None]


class ConfigBody(Body):
    """Hyper-parameters; whatever is absent has the default that the OpenAPI document names."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra=_document_config)

    epochs: Annotated[Finite, Field(gt=0, le=10_000)] | None = None
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    learning_rate: Annotated[Finite, Field(gt=0, le=1)] | None = None
    optimizer: Annotated[str, StringConstraints(max_length=60)] | None = None
    lr_scheduler: Annotated[str, StringConstraints(max_length=60)] | None = None
    warmup_steps: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    weight_decay: Annotated[Finite, Field(ge=0, le=1)] | None = None
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_grad_norm: Annotated[Finite, Field(ge=0, le=1_000_000)] | None = None
    mixed_precision: Annotated[str, StringConstraints(max_length=60)] | None = None
    max_length: Annotated[int, Field(ge=4, le=131_072)] | None = None
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] | None = None
    log_every_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    eval_every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    checkpoint_every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] | None = None
    enable_early_stopping: bool | None = None
    early_stopping_patience: Annotated[int, Field(ge=1, le=10_000)] | None = None
    early_stopping_threshold: Annotated[Finite, Field(ge=0, le=1_000)] | None = None
    distillation_alpha: Annotated[Finite, Field(ge=0, le=1)] | None = None
    distillation_temperature: Annotated[Finite, Field(gt=0, le=100)] | None = None
    lora: LoraBody | None = None
    columns: dict[Literal["text", "textPair", "label"], Annotated[str, StringConstraints(max_length=400)]] | None = None
    validation_split: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    vocabulary: Annotated[str, StringConstraints(max_length=60)] | None = None
    alignment_epochs: Annotated[int, Field(ge=0, le=100)] | None = None
    batching: Annotated[str, StringConstraints(max_length=60)] | None = None
    embedding_learning_rate: Annotated[Finite, Field(gt=0, le=1)] | None = None
    dropout: Annotated[Finite, Field(ge=0, lt=1)] | None = None


class StartBody(Body):
    """A run that is asked for."""

    base_model: AssetRef
    datasets: Annotated[list[AssetRef], Field(min_length=1, max_length=16)]
    teacher_model: AssetRef | None = None
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    task: Annotated[str, StringConstraints(min_length=1, max_length=60)] | None = None
    config: ConfigBody | None = None


class Started(Wire):
    """A run that was taken into the queue."""

    run_id: str
    job_id: str
    status: str


class RunStatus(Wire):
    """A run's state after a wish."""

    run_id: str
    job_id: str
    status: str


class Origin(Wire):
    """What a run was made from."""

    kind: Literal["restore", "clone", "adopt"]
    run_id: str | None = None
    checkpoint_id: str | None = None


class Job(Wire):
    """The flat row of a run, section 5 of the contract."""

    id: str
    run_id: str
    job_id: str
    name: str
    status: str
    base_model: str
    datasets: list[str]
    teacher_model: str | None
    task: str
    epoch: float | None
    step: int
    total_steps: int | None
    train_loss: float | None
    val_loss: float | None
    accuracy: float | None
    throughput: float | None
    best_checkpoint: str | None
    last_checkpoint: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    progress: int
    silent_since: str | None = None
    origin: Origin | None = None
    error: str | None = None
    message: str | None = None
    non_finite: dict[str, str] | None = None


class HistoryRow(Wire):
    """One logged step; null means not measured, a NaN or infinity is null and named in `nonFinite`."""

    step: int
    epoch: float | None
    loss: float | None
    val_loss: float | None
    accuracy: float | None
    throughput: float | None
    learning_rate: float | None
    timestamp: str
    non_finite: dict[str, str] | None = None


class LogLine(Wire):
    """One log line; `type` repeats `level`."""

    timestamp: str
    level: str
    type: str
    message: str
    details: Any | None


class JobStatus(Job):
    """A run with its curves and log."""

    metrics: dict[str, float | int | None]
    history: list[HistoryRow]
    logs: list[LogLine]
    config: dict[str, Any] | None = None


class Attempt(Wire):
    """The newest attempt; `pid` only while it lives on this machine."""

    number: int
    pid: int | None
    host: str
    started_at: str


class Queue(Wire):
    """Where a waiting run stands and what it waits for: `supervisor` (nothing), `turn`, `slot`, `memory`."""

    position: int
    waits_for: str
    message: str
    needed_bytes: int | None = None
    free_bytes: int | None = None


class QueuedRun(Queue):
    """A run in the queue; `reservedBytes` is the memory set aside for it once it starts."""

    run_id: str
    job_id: str
    name: str
    base_model: str
    reserved_bytes: int | None


class WholeQueue(Wire):
    """The queue in its order, and what there is for runs: how many at once, GPUs, memory of which some is reserved."""

    slots: int
    gpus: int
    memory_bytes: int
    reserved_bytes: int
    running: list[str]
    waiting: list[QueuedRun]


class MoveBody(Body):
    """Where a waiting run is to stand, from 1; beyond the end is the end."""

    position: Annotated[int, Field(ge=1, le=1_000_000)]


class TrainingStatus(JobStatus):
    """A run with curves, log, its attempt and its place in the queue."""

    attempt: Attempt | None
    queue: Queue | None


class Curve(Wire):
    """One run's values at the steps of a comparison."""

    run_id: str
    name: str
    values: list[float | None]


class Comparison(Wire):
    """Curves of several runs on one axis of steps."""

    metric: str
    steps: list[int]
    runs: list[Curve]
