"""Routes of single checkpoints (section 4 of the contract): lineage, download, restore, pin, prune, delete; cloning."""

from collections.abc import Iterator
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.types import Receive, Scope, Send

from kargah.assets.errors import DatasetNotAllowed, ModelNotAllowed
from kargah.assets.models import AssetRow
from kargah.assets.routes import Freed
from kargah.assets.schemas import Asset, of_row
from kargah.datasets.errors import TooManyLabels
from kargah.ground.errors import AssetNotReady, DiskFull, InUse, NotSupported, ValidationFailed
from kargah.ground.web.documented import errors
from kargah.ground.web.envelope import Ok, attachment, failure, language_of, ok
from kargah.runs import checkpoint_schemas as schemas
from kargah.runs.checkpoint_files import OpenFile, is_training_state, part_of, read_part
from kargah.runs.checkpoint_lineage import Lineage
from kargah.runs.checkpoints import Checkpoints
from kargah.runs.cloning import clone_run, restore_run
from kargah.runs.errors import (
    CheckpointNotFound,
    ComputeMissing,
    DataChanged,
    DataDamaged,
    ModelDamaged,
    NoLabels,
    NoSuchFile,
    NotEnoughRows,
    RangeNotSatisfiable,
    RunNotFound,
    SingleClass,
    SpecInvalid,
    TaskNotSupported,
    TeacherMismatch,
    TrainingColumnNotFound,
    UnknownLabel,
)
from kargah.runs.models import RunRow
from kargah.runs.schemas import Started
from kargah.runs.service import Runs
from kargah.text.languages import Language

_PATH = "/api/training/checkpoints/{checkpoint_id:checkpointid}"
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a zip that `from_pretrained` loads once it is unpacked, or the file that `file` names",
        "content": {"application/zip": _BINARY, "application/octet-stream": _BINARY},
    },
    206: {"description": "a part of the file", "content": {"application/octet-stream": _BINARY}},
}


class _CheckpointId(StringConvertor):
    """An id in a path. `prune` is the name of a path of its own, and so no id."""

    regex = "(?!prune(?:/|$))[^/]+"


def build_router(checkpoints: Checkpoints, runs: Runs) -> APIRouter:
    """The routes, bound to this server's checkpoints and runs."""
    register_url_convertor("checkpointid", _CheckpointId())
    router = APIRouter(tags=["training"])

    @router.get(
        _PATH,
        response_model=Ok[schemas.CheckpointDetails],
        responses=errors(CheckpointNotFound, ModelDamaged, ValidationFailed),
    )
    def checkpoint(request: Request, checkpoint_id: str) -> Response:
        """A checkpoint: its files, where it comes from, and what came from it."""
        return ok(_details(checkpoints.lineage(checkpoint_id), language_of(request)))

    @router.delete(_PATH, response_model=Ok[Freed], responses=errors(CheckpointNotFound, InUse, ValidationFailed))
    def delete(checkpoint_id: str) -> Response:
        """Delete a checkpoint and give its space back. What needs it stands in `details.breaks` of a refusal."""
        freed = checkpoints.delete(checkpoint_id)
        return ok({"id": checkpoint_id, "kind": "checkpoint", "freedBytes": freed})

    @router.get(
        f"{_PATH}/download",
        response_class=Response,
        responses={
            **_FILES,
            **errors(CheckpointNotFound, NoSuchFile, ModelDamaged, RangeNotSatisfiable, ValidationFailed),
        },
    )
    def download(
        request: Request,
        checkpoint_id: str,
        file: Annotated[
            str | None, Query(min_length=1, max_length=400, description="one file instead of the zip; resumable")
        ] = None,
        training: Annotated[bool, Query(description="also what a run needs to go on from it")] = False,
    ) -> Response:
        """A checkpoint as a zip with a model card, or one file of it, whole or in part."""
        if file is not None:
            return _send_file(request, checkpoints.file(checkpoint_id, file))
        name, archive = checkpoints.archive(checkpoint_id, language_of(request), training=training)
        headers = {"Content-Length": str(archive.size_bytes), "Accept-Ranges": "none", **attachment(name)}
        if request.method == "HEAD":
            archive.close()
            return Response(headers=headers, media_type="application/zip")
        return _Sent(iter(archive), archive, headers, "application/zip")

    router.add_api_route(f"{_PATH}/download", download, methods=["HEAD"], include_in_schema=False)

    @router.post(
        f"{_PATH}/restore",
        response_model=Ok[Started],
        responses=errors(
            AssetNotReady,
            CheckpointNotFound,
            ComputeMissing,
            DataChanged,
            DataDamaged,
            DatasetNotAllowed,
            DiskFull,
            ModelDamaged,
            ModelNotAllowed,
            ValidationFailed,
        ),
    )
    def restore(checkpoint_id: str, body: schemas.RestoreBody | None = None) -> Response:
        """Put a run into the queue that goes on from a checkpoint exactly as its own run did."""
        return _started(restore_run(runs, checkpoint_id, body.name if body else None))

    @router.post(
        f"{_PATH}/pin", response_model=Ok[Asset], responses=errors(CheckpointNotFound, DiskFull, ValidationFailed)
    )
    def pin(request: Request, checkpoint_id: str, body: schemas.PinBody) -> Response:
        """Let a checkpoint stay whatever the limits say, or no longer."""
        return ok(of_row(_pinned(checkpoints, checkpoint_id, body.pinned), None, language_of(request)))

    @router.post(
        "/api/training/checkpoints/prune",
        response_model=Ok[schemas.Pruned],
        responses=errors(RunNotFound, ValidationFailed),
    )
    def prune(body: schemas.PruneBody) -> Response:
        """Remove checkpoints by a policy; what is pinned, held or needed by an unfinished run stays. With `dryRun` only
        tell what would go, and the bytes that would come back."""
        run_id = None
        if body.run_id is not None:
            with runs.database.read() as session:
                run_id = runs.get(session, body.run_id).id
        done = checkpoints.prune(run_id, keep_last=body.keep_last, keep_best=body.keep_best, dry_run=body.dry_run)
        removed = [_removed(row) for row in done.removed]
        return ok({"removed": removed, "kept": done.kept, "freedBytes": done.freed_bytes})

    @router.post(
        "/api/training/clone/{run_id}",
        response_model=Ok[Started],
        responses=errors(
            AssetNotReady,
            ComputeMissing,
            DataDamaged,
            DatasetNotAllowed,
            DiskFull,
            ModelDamaged,
            ModelNotAllowed,
            NoLabels,
            NotEnoughRows,
            NotSupported,
            RunNotFound,
            SingleClass,
            SpecInvalid,
            TaskNotSupported,
            TeacherMismatch,
            TooManyLabels,
            TrainingColumnNotFound,
            UnknownLabel,
            ValidationFailed,
        ),
    )
    def clone(run_id: str, body: schemas.CloneBody | None = None) -> Response:
        """Plan a run afresh as another one was asked for, with changes."""
        return _started(clone_run(runs, run_id, body or schemas.CloneBody()))

    return router


class _Closable(Protocol):
    def close(self) -> None: ...


class _Sent(StreamingResponse):
    """Bytes from open files, which are closed however the sending ends."""

    def __init__(
        self, parts: Iterator[bytes], opened: _Closable, headers: dict[str, str], media_type: str, status: int = 200
    ) -> None:
        super().__init__(parts, status, headers, media_type)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._opened.close()


def _send_file(request: Request, opened: OpenFile) -> Response:
    etag = f'"{opened.digest}"'
    headers = {"Accept-Ranges": "bytes", "ETag": etag}
    # Without a match whoever asks has a part of another file, and gets the whole of this one (RFC 9110, 13.1.5).
    is_same = request.headers.get("if-range", etag) == etag
    try:
        part = part_of(request.headers.get("range"), opened.size_bytes) if is_same and request.method == "GET" else None
    except ValueError:
        opened.file.close()
        answer = failure(RangeNotSatisfiable(file=opened.name, size=opened.size_bytes), language_of(request))
        answer.headers.update({**headers, "Content-Range": f"bytes */{opened.size_bytes}"})
        return answer
    first, end = part or (0, opened.size_bytes)
    headers |= {"Content-Length": str(end - first), **attachment(opened.name.rpartition("/")[2])}
    if part is not None:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{opened.size_bytes}"
    if request.method == "HEAD":
        opened.file.close()
        return Response(headers=headers, media_type="application/octet-stream")
    status = 200 if part is None else 206
    return _Sent(read_part(opened.file, first, end), opened.file, headers, "application/octet-stream", status)


def _details(lineage: Lineage, language: Language) -> dict[str, Any]:
    spec, manifest = lineage.spec, lineage.manifest
    return {
        **of_row(lineage.row, None, language),
        "runName": lineage.run.name if lineage.run is not None else spec.get("name"),
        "attempt": manifest.get("attempt", lineage.row.facts.get("attempt")),
        "holders": lineage.holders,
        "files": [
            {
                "name": name,
                "sizeBytes": entry["sizeBytes"],
                "digest": entry["digest"],
                "training": is_training_state(name),
            }
            for name, entry in manifest["files"].items()
        ],
        "spec": _without_places(spec),
        "labels": [str(label) for label in manifest.get("labels") or ()],
        "baseModel": _model(spec.get("baseModel")),
        "teacherModel": _model(spec.get("teacherModel")),
        "datasets": [{"id": one.get("id"), "version": one.get("version")} for one in spec.get("datasets") or ()],
        "codeVersion": manifest.get("kargahVersion") or spec.get("kargahVersion"),
        "versions": {name: str(version) for name, version in (manifest.get("versions") or {}).items()},
        "descendants": [
            {"runId": one.run_id, "name": one.name, "status": one.status, "relation": one.relation}
            for one in lineage.descendants
        ],
    }


def _without_places(value: Any) -> Any:
    """A spec without places of files: where they are is the server's own affair."""
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items() if name not in ("path", "resumeFrom")}
    return [_without_places(inner) for inner in value] if isinstance(value, list) else value


def _model(reference: Any) -> dict[str, Any] | None:
    if not isinstance(reference, dict) or not reference.get("id"):
        return None
    return {"id": reference["id"], "kind": reference.get("kind", "model"), "revision": reference.get("revision")}


def _pinned(checkpoints: Checkpoints, checkpoint_id: str, pinned: bool) -> AssetRow:
    try:
        return checkpoints.pin(checkpoint_id, pinned)
    except OSError as error:
        raise DiskFull() from error


def _removed(row: AssetRow) -> dict[str, Any]:
    return {
        "checkpointId": row.id,
        "runId": row.run_id,
        "step": row.facts.get("step") or 0,
        "sizeBytes": row.size_bytes or 0,
    }


def _started(row: RunRow) -> Response:
    return ok({"runId": row.id, "jobId": row.job_id, "status": "queued"})
