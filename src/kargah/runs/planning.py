"""From what a person asked for to a frozen spec, or to a refusal with a code: what cannot be done never starts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from kargah import __version__
from kargah.assets.catalog import check_id
from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.datasets.stored import DatasetInfo, FolderUnreadable, describe
from kargah.ground.errors import DiskFull, NotSupported, invalid
from kargah.ground.ids import now, rfc3339
from kargah.runs import errors
from kargah.runs.schemas import ConfigBody, Ref, StartBody
from kargah.spec import run_spec
from kargah.spec.manifest import FolderDamaged, verify_folder
from kargah.spec.run_spec import DatasetRef, ModelRef, RunSpec, TrainConfig

BASES = ("model", "checkpoint")
MIN_ROWS = 2


class Plan:
    """A spec and the assets it uses."""

    def __init__(self, spec: RunSpec, uses: list[tuple[str, str]]) -> None:
        self.spec = spec
        self.uses = uses


def plan_run(session: Session, registry: Registry, run_id: str, body: StartBody) -> Plan:
    """The spec of a run. Raises what the errors of this room, of the assets room and of the ground name."""
    config = _config(body.config or ConfigBody())
    task = body.task or run_spec.TASKS[0]
    if task not in run_spec.TASKS:
        raise NotSupported(field="task", reason=f"{task} ∉ {', '.join(run_spec.TASKS)}")
    base = registry.require_ready(session, BASES, _id("baseModel", body.base_model))
    teacher = body.teacher_model and registry.require_ready(session, BASES, _id("teacherModel", body.teacher_model))
    ids = [_id(f"datasets.{number}", ref) for number, ref in enumerate(body.datasets)]
    rows = [registry.require_ready(session, ("dataset",), dataset_id) for dataset_id in ids]
    if len({row.id for row in rows}) != len(rows):
        raise invalid("datasets", "problem.twice")
    datasets = [_dataset(row, registry.folder(row), config) for row in rows]
    labels = _labels(datasets)
    base_config = _check_model(base, registry.folder(base))
    if teacher:
        _check_teacher(teacher, registry.folder(teacher), labels)
    reach = _positions(base_config)
    if config.max_length > reach:
        if body.config is not None and body.config.max_length is not None:
            raise NotSupported(field="config.maxLength", reason=f"{base.id}: ≤ {reach}")
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


def _config(body: ConfigBody) -> TrainConfig:
    given = {name: getattr(body, name) for name in body.model_fields_set if getattr(body, name) is not None}
    if "lora" in given:
        raise NotSupported(field="config.lora", reason="LoRA")
    for name, allowed in (
        ("optimizer", run_spec.OPTIMIZERS),
        ("lr_scheduler", run_spec.LR_SCHEDULERS),
        ("mixed_precision", run_spec.MIXED_PRECISION),
        ("vocabulary", run_spec.VOCABULARIES),
        ("batching", run_spec.BATCHINGS),
    ):
        if name in given and given[name] not in allowed:
            field = f"config.{run_spec.to_camel(name)}"
            raise NotSupported(field=field, reason=f"{given[name]} ∉ {', '.join(allowed)}")
    return TrainConfig(**given)


def _id(field: str, ref: Ref) -> str:
    return check_id(field, ref.id)


def _dataset(row: AssetRow, folder: Path, config: TrainConfig) -> DatasetRef:
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
    if info.splits.get("train", 0) < MIN_ROWS:
        raise errors.NotEnoughRows(id=row.id, num_rows=info.splits.get("train", 0))
    return DatasetRef(
        id=row.id, path=str(folder), version=info.version, columns=columns, labels=_known_labels(info, columns["label"])
    )


def _known_labels(info: DatasetInfo, column: str) -> list[str]:
    """The labels the import found, when the run uses the column it found them in; else the program finds them."""
    return list(info.labels) if info.mapping.get("label") == column else []


def _labels(datasets: list[DatasetRef]) -> set[str] | None:
    if any(not dataset.labels for dataset in datasets):
        return None
    labels = {label for dataset in datasets for label in dataset.labels}
    if len(labels) < 2:
        raise errors.SingleClass(id=datasets[0].id)
    return labels


def _check_model(row: AssetRow, folder: Path) -> dict[str, Any]:
    config = _read_config(row, folder)
    _check_files(row, folder)
    if not config.get("model_type"):
        raise errors.TaskNotSupported(id=row.id)
    if not any(folder.glob("*.safetensors")):
        raise errors.ModelDamaged(id=row.id, file="model.safetensors")
    return config


def _check_teacher(row: AssetRow, folder: Path, labels: set[str] | None) -> None:
    config = _check_model(row, folder)
    heads = [name for name in config.get("architectures") or [] if name.endswith("ForSequenceClassification")]
    known = {str(label) for label in (config.get("id2label") or {}).values()}
    if not heads or (labels is not None and known != labels):
        details = {"teacher": sorted(known)[:50], "data": sorted(labels or [])[:50]}
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
