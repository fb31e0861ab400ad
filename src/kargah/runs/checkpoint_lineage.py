"""Where a checkpoint comes from and what came from it, as its folder, its run and the registry say."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.runs.checkpoint_files import manifest_of
from kargah.runs.errors import ModelDamaged
from kargah.runs.models import RunRow
from kargah.spec.layout import SPEC, read_json

MAX_GENERATIONS = 100


@dataclass(frozen=True, slots=True)
class Descendant:
    """A run that was made from a checkpoint: it restored it, or took it as `base` or `teacher`."""

    run_id: str
    name: str
    status: str
    relation: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """A checkpoint with all that is known of it. `spec` and `manifest` are as they stand in its folder.

    `root_model` is the asset at the beginning of its bases, None when that is not held any more; `dataset_names` are
    those of the data sets that are held; `run` is None when the run is not known here.
    """

    row: AssetRow
    run: RunRow | None
    folder: Path
    manifest: dict[str, Any]
    spec: dict[str, Any]
    holders: list[str]
    descendants: list[Descendant] = field(default_factory=list)
    root_model: AssetRow | None = None
    dataset_names: dict[str, str] = field(default_factory=dict)


def read_lineage(session: Session, registry: Registry, row: AssetRow) -> Lineage:
    """The lineage of a checkpoint. Raises `CheckpointNotFound` when its folder is gone, `ModelDamaged`."""
    folder = registry.folder(row)
    manifest = manifest_of(row.id, folder)
    run = session.get(RunRow, row.run_id) if row.run_id else None
    spec = read_own_spec(row, folder)
    if not spec and run is not None:
        spec = run.spec
    datasets = [one for one in spec.get("datasets") or () if isinstance(one, dict)]
    held = {one["id"]: registry.find(session, "dataset", one["id"]) for one in datasets if "id" in one}
    return Lineage(
        row=row,
        run=run,
        folder=folder,
        manifest=manifest,
        spec=spec,
        holders=registry.holders(session, row.kind, row.id),
        descendants=_descendants(session, row.id),
        root_model=_root_model(session, registry, spec.get("baseModel")),
        dataset_names={dataset_id: found.name for dataset_id, found in held.items() if found is not None},
    )


def read_own_spec(row: AssetRow, folder: Path) -> dict[str, Any]:
    """The spec in a checkpoint's folder; empty when there is none. Raises `ModelDamaged`."""
    try:
        spec = read_json(folder / SPEC)
    except (OSError, ValueError) as error:
        raise ModelDamaged(id=row.id, file=SPEC) from error
    if spec is not None and not isinstance(spec, dict):
        raise ModelDamaged(id=row.id, file=SPEC)
    return spec or {}


def _descendants(session: Session, checkpoint_id: str) -> list[Descendant]:
    query = select(RunRow).where(
        or_(
            RunRow.base_model == checkpoint_id,
            RunRow.teacher_model == checkpoint_id,
            RunRow.origin["checkpointId"].as_string() == checkpoint_id,
        )
    )
    found = []
    for run in session.scalars(query.order_by(RunRow.created_at, RunRow.id)).all():
        relation = "base" if run.base_model == checkpoint_id else "teacher"
        if (run.origin or {}).get("checkpointId") == checkpoint_id:
            relation = "restore"
        found.append(Descendant(run.id, run.name, run.status, relation))
    return found


def _root_model(session: Session, registry: Registry, reference: Any) -> AssetRow | None:
    for _ in range(MAX_GENERATIONS):
        if not isinstance(reference, dict):
            return None
        row = registry.find(session, str(reference.get("kind", "model")), str(reference.get("id")))
        if row is None or row.kind == "model":
            return row
        run = session.get(RunRow, row.run_id) if row.run_id else None
        reference = run.spec.get("baseModel") if run is not None else None
    return None
