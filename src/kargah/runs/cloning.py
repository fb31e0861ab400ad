"""New runs out of old ones: one that goes on from a checkpoint exactly as the first did, and one that is planned afresh
from what the first was asked for, with changes."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from kargah import __version__
from kargah.assets.catalog import check_id
from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.datasets.stored import FolderUnreadable, describe
from kargah.ground.errors import AssetNotReady
from kargah.ground.ids import new_id, now, rfc3339
from kargah.runs.checkpoint_files import manifest_of
from kargah.runs.checkpoint_lineage import read_own_spec
from kargah.runs.checkpoint_schemas import CloneBody
from kargah.runs.errors import CheckpointNotFound, ComputeMissing, DataChanged, DataDamaged, ModelDamaged, SpecInvalid
from kargah.runs.executor import compute_installed
from kargah.runs.models import RunRow
from kargah.runs.planning import Plan, check_config
from kargah.runs.schemas import StartBody
from kargah.runs.service import Runs
from kargah.spec.layout import SPEC
from kargah.spec.manifest import FolderDamaged, verify_folder
from kargah.spec.run_spec import DatasetRef, ModelRef, RunSpec, SpecError, TrainConfig, to_camel


def restore_run(runs: Runs, checkpoint_id: str, name: str | None = None) -> RunRow:
    """Put a run into the queue that goes on from a checkpoint with the spec of the run that wrote it.

    Raises `CheckpointNotFound`, `ModelDamaged`, `AssetNotReady` for what the run used and is not held any more, or is
    held at another commit, `DataChanged`, `DataDamaged`, and what `Runs.enqueue` raises.
    """
    if not compute_installed():
        raise ComputeMissing()
    with runs.database.read() as session:
        row = runs.registry.find(session, "checkpoint", checkpoint_id)
        if row is None:
            raise CheckpointNotFound(id=checkpoint_id)
        plan = _plan_restored(session, runs.registry, row, name)
    origin = {"kind": "restore", "runId": row.run_id, "checkpointId": row.id}
    return runs.enqueue(plan.spec, plan.uses, origin)


def clone_run(runs: Runs, any_id: str, body: CloneBody) -> RunRow:
    """Plan a run afresh as the one under `any_id` (its own or its job's) was asked for, with what `body` changes.

    Raises `ValidationFailed`, `RunNotFound`, `SpecInvalid`, and what `Runs.start` raises.
    """
    _check_changes(body, has_gpu=runs.has_gpu)
    with runs.database.read() as session:
        run = runs.get(session, any_id)
    return runs.start(cloned_body(run, body), {"kind": "clone", "runId": run.id})


def cloned_body(run: RunRow, body: CloneBody) -> StartBody:
    """What a run was asked for, with changes. Raises `SpecInvalid` for a run whose spec is none of this version."""
    try:
        spec = RunSpec.from_json(run.spec)
    except SpecError as error:
        raise SpecInvalid(details={"field": error.field}) from error
    asked: dict[str, Any] = {
        "baseModel": {"id": spec.base_model.id},
        "datasets": [{"id": dataset.id} for dataset in spec.datasets],
        "name": spec.name,
        "task": spec.task,
        **({"teacherModel": {"id": spec.teacher_model.id}} if spec.teacher_model else {}),
    }
    given = body.model_dump(by_alias=True, exclude_unset=True)
    config = _changed_config(spec.config, given.pop("config", {}))
    for name, value in given.items():
        if value is not None:
            asked[name] = value
        elif name not in ("baseModel", "datasets"):
            asked.pop(name, None)
    try:
        return StartBody.model_validate({**asked, "config": config})
    except ValidationError as error:
        raise SpecInvalid(details={"field": "config"}) from error


def _check_changes(body: CloneBody, *, has_gpu: bool) -> None:
    """What can never be is refused before the run is looked for."""
    named = {"baseModel": body.base_model, "teacherModel": body.teacher_model}
    named |= {f"datasets.{number}": ref for number, ref in enumerate(body.datasets or ())}
    for field, ref in named.items():
        if ref is not None:
            check_id(field, ref.id)
    if body.config is not None:
        check_config(body.config, has_gpu=has_gpu)


def _changed_config(config: TrainConfig, changes: dict[str, Any] | None) -> dict[str, Any]:
    if changes is None:
        return {}
    defaults = TrainConfig()
    before = {
        to_camel(field.name): getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(defaults, field.name)
    }
    if config.lora is not None:
        lora = {to_camel(name): value for name, value in dataclasses.asdict(config.lora).items() if value is not None}
        before["lora"] = lora
    if changes.get("epochs") is not None and "maxSteps" not in changes:
        # Whoever asks for epochs means them; the old number of steps would win over them.
        before.pop("maxSteps", None)
    if isinstance(changes.get("lora"), dict) and "lora" in before:
        changes = {**changes, "lora": {**before["lora"], **changes["lora"]}}
    return {name: value for name, value in {**before, **changes}.items() if value is not None}


def _plan_restored(session: Session, registry: Registry, row: AssetRow, name: str | None) -> Plan:
    folder = registry.folder(row)
    manifest_of(row.id, folder)
    try:
        verify_folder(folder, digests=False)
        spec = RunSpec.from_json(read_own_spec(row, folder))
    except FolderDamaged as damage:
        raise ModelDamaged(id=row.id, file=damage.file) from damage
    except SpecError as error:
        raise ModelDamaged(id=row.id, file=SPEC) from error
    base = _same_model(session, registry, spec.base_model)
    teacher = _same_model(session, registry, spec.teacher_model) if spec.teacher_model else None
    datasets = [_same_dataset(session, registry, dataset) for dataset in spec.datasets]
    restored = replace(
        spec,
        run_id=new_id(),
        name=name or row.name,
        base_model=base,
        teacher_model=teacher,
        datasets=datasets,
        resume_from=str(folder),
        created_at=rfc3339(now()),
        kargah_version=__version__,
    )
    models = [(model.kind, model.id) for model in (base, teacher) if model is not None]
    return Plan(restored, [*models, *(("dataset", dataset.id) for dataset in datasets), ("checkpoint", row.id)])


def _same_model(session: Session, registry: Registry, model: ModelRef) -> ModelRef:
    row, folder = _held(session, registry, model.kind, model.id)
    if row.revision != model.revision:
        raise AssetNotReady(id=model.id, details={"id": model.id, "revision": model.revision, "held": row.revision})
    return replace(model, path=str(folder))


def _same_dataset(session: Session, registry: Registry, dataset: DatasetRef) -> DatasetRef:
    _, folder = _held(session, registry, "dataset", dataset.id)
    try:
        version = describe(folder).version
    except FolderUnreadable as error:
        raise DataDamaged(id=dataset.id) from error
    if version != dataset.version:
        raise DataChanged(id=dataset.id, details={"id": dataset.id, "version": dataset.version, "held": version})
    return replace(dataset, path=str(folder))


def _held(session: Session, registry: Registry, kind: str, asset_id: str) -> tuple[AssetRow, Path]:
    row = registry.find(session, kind, asset_id)
    if row is None or row.status != "ready":
        status = row.status if row is not None else "removed"
        raise AssetNotReady(id=asset_id, details={"id": asset_id, "status": status})
    return row, registry.folder(row)
