"""From what a person asked for to a frozen spec, or to a refusal with a code: what cannot be done never starts."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from kargah import __version__
from kargah.assets.catalog import check_id
from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.datasets.errors import TooManyLabels
from kargah.datasets.labels import LabelCounts, count_labels
from kargah.datasets.stored import DatasetInfo, FolderUnreadable, describe
from kargah.ground.errors import DiskFull, NotSupported, invalid
from kargah.ground.ids import now, rfc3339
from kargah.runs import errors
from kargah.runs.schemas import ConfigBody, Ref, StartBody
from kargah.spec import run_spec
from kargah.spec.manifest import FolderDamaged, verify_folder
from kargah.spec.precision import cpu_has_native_bf16
from kargah.spec.run_spec import DatasetRef, LoraConfig, ModelRef, RunSpec, TrainConfig
from kargah.text.messages import Sentence

BASES = ("model", "checkpoint")
MIN_ROWS = 2
MAX_HEADER_BYTES = 100_000_000
MAX_LABELS = 1000
MANY_LABELS = 100
"""More labels than this must stand for at least two rows each, on average: else the column is an id or free text."""


class Plan:
    """A spec and the assets it uses."""

    def __init__(self, spec: RunSpec, uses: list[tuple[str, str]]) -> None:
        self.spec = spec
        self.uses = uses


def plan_run(session: Session, registry: Registry, run_id: str, body: StartBody, *, has_gpu: bool) -> Plan:
    """The spec of a run. Raises what the errors of this room, of the assets room and of the ground name."""
    config = _config(body.config or ConfigBody(), has_gpu=has_gpu)
    task = body.task or run_spec.TASKS[0]
    if task not in run_spec.TASKS:
        raise _not_one_of("task", task, run_spec.TASKS)
    base_id = _id("baseModel", body.base_model)
    teacher_id = body.teacher_model and _id("teacherModel", body.teacher_model)
    ids = [_id(f"datasets.{number}", ref) for number, ref in enumerate(body.datasets)]
    base = registry.require_ready(session, BASES, base_id)
    teacher = registry.require_ready(session, BASES, teacher_id) if teacher_id else None
    rows = [registry.require_ready(session, ("dataset",), dataset_id) for dataset_id in ids]
    if len({row.id for row in rows}) != len(rows):
        raise invalid("datasets", "problem.twice")
    planned = [_dataset(row, registry.folder(row), config) for row in rows]
    datasets = [dataset for dataset, _ in planned]
    _check_pairs(datasets)
    labels = _labels(datasets, [counts for _, counts in planned])
    base_config = _check_model(base, registry.folder(base))
    if teacher:
        _check_teacher(teacher, registry.folder(teacher), labels)
    if config.lora is not None and config.lora.target_modules:
        _check_targets(config.lora.target_modules, base, registry.folder(base))
    reach = _positions(base_config)
    if config.max_length > reach:
        if body.config is not None and body.config.max_length is not None:
            raise NotSupported(field="config.maxLength", reason=Sentence("reason.maxLength", id=base.id, reach=reach))
        config = replace(config, max_length=reach)
    _check_space(registry, base, config)
    spec = RunSpec(
        run_id=run_id,
        name=body.name or f"{_short(base)} · {_short(rows[0])}",
        task=task,
        base_model=_model_ref(base, registry),
        teacher_model=_model_ref(teacher, registry) if teacher else None,
        datasets=datasets,
        config=config,
        created_at=rfc3339(now()),
        kargah_version=__version__,
    )
    uses = [(row.kind, row.id) for row in [base, *rows, *([teacher] if teacher else [])]]
    return Plan(spec, uses)


def check_config(body: ConfigBody, *, has_gpu: bool) -> None:
    """Refuse hyper-parameters that no run can have, whatever it trains. Raises `NotSupported`."""
    _config(body, has_gpu=has_gpu)


def _config(body: ConfigBody, *, has_gpu: bool) -> TrainConfig:
    given = {name: getattr(body, name) for name in body.model_fields_set if getattr(body, name) is not None}
    for name, allowed in (
        ("optimizer", run_spec.OPTIMIZERS),
        ("lr_scheduler", run_spec.LR_SCHEDULERS),
        ("mixed_precision", run_spec.MIXED_PRECISION),
        ("vocabulary", run_spec.VOCABULARIES),
        ("batching", run_spec.BATCHINGS),
    ):
        if name in given and given[name] not in allowed:
            raise _not_one_of(f"config.{run_spec.to_camel(name)}", given[name], allowed)
    if body.lora is not None:
        given["lora"] = LoraConfig(**body.lora.model_dump(exclude_none=True))
        for name, alone in (("vocabulary", "own"), ("embedding_learning_rate", None)):
            if given.get(name, alone) != alone:
                raise NotSupported(field=f"config.{run_spec.to_camel(name)}", reason=Sentence("reason.withLora"))
    precision = given.get("mixed_precision", "no")
    if not has_gpu and (precision == "fp16" or (precision == "bf16" and not cpu_has_native_bf16())):
        raise NotSupported(field="config.mixedPrecision", reason=Sentence(f"reason.{precision}"))
    return TrainConfig(**given)


def _not_one_of(field: str, value: str, allowed: tuple[str, ...]) -> NotSupported:
    return NotSupported(field=field, reason=Sentence("reason.notOneOf", value=value, allowed=", ".join(allowed)))


def _id(field: str, ref: Ref) -> str:
    return check_id(field, ref.id)


def _dataset(row: AssetRow, folder: Path, config: TrainConfig) -> tuple[DatasetRef, LabelCounts]:
    try:
        info = describe(folder)
    except FolderUnreadable as error:
        raise errors.DataDamaged(id=row.id) from error
    columns = dict(config.columns or info.mapping)
    names = {column.name for column in info.columns}
    for column in columns.values():
        if column not in names:
            raise errors.TrainingColumnNotFound(
                column=column, file=row.id, available=", ".join(sorted(names)), details={"available": sorted(names)}
            )
    if "text" not in columns or "label" not in columns:
        raise errors.NoLabels(id=row.id)
    made = not any(source.get("split") == "validation" for source in info.sources)
    try:
        counts = count_labels(info, columns, validation_made_anew=made and config.validation_split is not None)
    except FolderUnreadable as error:
        raise errors.DataDamaged(id=row.id) from error
    if counts.train.total() < MIN_ROWS:
        raise errors.NotEnoughRows(id=row.id, num_rows=counts.train.total())
    dataset = DatasetRef(
        id=row.id,
        path=str(folder),
        version=info.version,
        columns=columns,
        labels=_known_labels(info, columns["label"]),
        validation_made=made,
    )
    return dataset, counts


def _known_labels(info: DatasetInfo, column: str) -> list[str]:
    """The labels the import found, when the run uses the column it found them in; else the program finds them."""
    return list(info.labels) if info.mapping.get("label") == column else []


def _check_pairs(datasets: list[DatasetRef]) -> None:
    if len({"textPair" in dataset.columns for dataset in datasets}) > 1:
        raise invalid("datasets", "problem.pairsDiffer")


def _labels(datasets: list[DatasetRef], counted: list[LabelCounts]) -> set[str]:
    """The labels of all data sets together. Raises what makes them no classes to learn."""
    train = sum((counts.train for counts in counted), Counter[str]())
    if len(train) < 2:
        raise errors.SingleClass(id=datasets[0].id)
    if len(train) > MAX_LABELS or (len(train) > MANY_LABELS and 2 * len(train) > train.total()):
        raise TooManyLabels(
            column=datasets[0].columns["label"],
            limit=min(MAX_LABELS, max(MANY_LABELS, train.total() // 2)),
            details={"labels": len(train), "rows": train.total()},
        )
    for counts in counted:
        for label in counts.validation:
            if label not in train:
                raise errors.UnknownLabel(label=label, details={"label": label, "rows": counts.validation[label]})
    return set(train)


def _check_model(row: AssetRow, folder: Path) -> dict[str, Any]:
    config = _read_config(row, folder)
    _check_files(row, folder)
    if not config.get("model_type"):
        raise errors.TaskNotSupported(id=row.id)
    if not any(folder.glob("*.safetensors")):
        raise errors.ModelDamaged(id=row.id, file="model.safetensors")
    return config


def _check_targets(targets: list[str], row: AssetRow, folder: Path) -> None:
    """Every target must name a module of the model; what kind of module it is, the program says."""
    names = {name.removesuffix(".weight") for name in _tensor_names(row, folder) if name.endswith(".weight")}
    for number, target in enumerate(targets):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names} - {"LayerNorm"})
            raise invalid(
                f"config.lora.targetModules.{number}", "problem.noSuchModule", available=", ".join(known[:20])
            )


def _tensor_names(row: AssetRow, folder: Path) -> list[str]:
    """Names of the weights: a safetensors file begins with the length of its JSON header and the header."""
    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                names += json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        except (OSError, ValueError) as error:
            raise errors.ModelDamaged(id=row.id, file=path.name) from error
    return names


def _check_teacher(row: AssetRow, folder: Path, labels: set[str]) -> None:
    config = _check_model(row, folder)
    heads = [name for name in config.get("architectures") or [] if name.endswith("ForSequenceClassification")]
    known = {str(label) for label in (config.get("id2label") or {}).values()}
    if not heads or known != labels:
        details = {"teacher": sorted(known)[:50], "data": sorted(labels)[:50]}
        raise errors.TeacherMismatch(id=row.id, details=details)


def _read_config(row: AssetRow, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.ModelDamaged(id=row.id, file="config.json") from error
    if not isinstance(config, dict):
        raise errors.ModelDamaged(id=row.id, file="config.json")
    return config


def _check_files(row: AssetRow, folder: Path) -> None:
    """Hold the folder's file sizes against its manifest; digests are the training program's to check."""
    try:
        verify_folder(folder, digests=False)
    except FolderDamaged as damage:
        raise errors.ModelDamaged(id=row.id, file=damage.file) from damage


def _positions(config: dict[str, Any]) -> int:
    """Tokens the model's positions reach; RoBERTa's family numbers them from the padding id on."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(positions, int):
        return 131_072
    offset = 2 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0
    return positions - offset


def _check_space(registry: Registry, base: AssetRow, config: TrainConfig) -> None:
    # A checkpoint holds the weights and Adam's two moments; best, last and one being written stand beside those kept.
    needed = 3 * (base.size_bytes or 0) * (config.keep_checkpoints + 2)
    free = registry.home.free_bytes()
    if needed > free:
        raise DiskFull(details={"neededBytes": needed, "freeBytes": free})


def _model_ref(row: AssetRow, registry: Registry) -> ModelRef:
    return ModelRef(id=row.id, path=str(registry.folder(row)), kind=row.kind, revision=row.revision)


def _short(row: AssetRow) -> str:
    return row.id.split("/")[-1] if row.source == "HuggingFace" else row.name
