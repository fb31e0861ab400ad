"""Routes of the datasets room: upload, the data sets held, one of them, its rows.

Ids may hold a slash, so these must be included behind every other route below `/api/datasets/`.
"""

import errno
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from kargah.assets import schemas as assets
from kargah.assets.catalog import check_id
from kargah.assets.errors import AssetNotFound
from kargah.assets.models import AssetRow
from kargah.assets.registry import Registry
from kargah.datasets import schemas
from kargah.datasets.errors import DatasetDamaged, EmptyData, TrainSplitMissing
from kargah.datasets.receiving import Upload, receive
from kargah.datasets.stored import FolderUnreadable, describe, read_part
from kargah.datasets.uploads import Importer, discard
from kargah.ground.errors import AssetNotReady, DiskFull, TooLarge, ValidationFailed
from kargah.ground.web.documented import errors
from kargah.ground.web.envelope import Ok, language_of, ok
from kargah.ground.web.multipart import check_length, limited
from kargah.ground.web.paging import MAX_LIMIT
from kargah.text.fold import fold
from kargah.text.languages import Language

_BINARY = {"type": "string", "format": "binary"}
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name"],
                    "anyOf": [{"required": ["file"]}, {"required": ["file:train"]}],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": 200},
                        "task": {"type": "string", "enum": ["text-classification"]},
                        "columns": {
                            "type": "string",
                            "description": "JSON, role to column name: `text`, `textPair`, `label`",
                            "examples": ['{"text": "متن", "label": "برچسب"}'],
                        },
                        **{
                            name: {"type": "array", "items": _BINARY, "description": text}
                            for name, text in (
                                ("file", "CSV, TSV, JSON, JSON Lines or Parquet; divided into training and validation"),
                                ("file:train", "rows for training"),
                                ("file:validation", "rows for validation"),
                                ("file:test", "rows for testing"),
                            )
                        },
                    },
                }
            }
        },
    }
}


def build_router(registry: Registry, importer: Importer, max_upload_bytes: int) -> APIRouter:
    """The routes, bound to this server's registry and importer."""
    router = APIRouter(tags=["datasets"])

    @router.post(
        "/api/datasets/upload",
        status_code=202,
        response_model=Ok[schemas.UploadStarted],
        responses=errors(ValidationFailed, EmptyData, TrainSplitMissing, TooLarge, DiskFull),
        openapi_extra=_FORM,
    )
    async def upload_dataset(request: Request) -> Response:
        """Upload files as a data set; its progress is `/api/datasets/download/progress?datasetId=…`."""
        # The files, and the same again as Parquet.
        check_length(request, max_upload_bytes, registry.home.free_bytes(), copies=2)
        try:
            upload, folder = await receive(
                limited(request, max_upload_bytes), request.headers.get("content-type", ""), registry.home.uploads
            )
            transfer_id = await run_in_threadpool(_accept, importer, upload, folder)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(details={"freeBytes": registry.home.free_bytes()}) from error
            raise
        return ok({"datasetId": upload.dataset_id, "status": "downloading", "downloadId": transfer_id}, 202)

    @router.get("/api/datasets", response_model=Ok[list[assets.Asset]])
    def list_datasets(request: Request, q: str | None = None) -> Response:
        """The data sets held: downloaded, uploaded, built in. Newest first."""
        language = language_of(request)
        with registry.database.read() as session:
            rows = registry.listed(session, ["dataset"])
        key = fold(q) if q else ""
        return ok([_asset(registry, row, language) for row in rows if key in fold(row.id) or key in fold(row.name)])

    @router.get(
        "/api/datasets/{dataset_id:path}/rows",
        response_model=Ok[schemas.Rows],
        responses=errors(AssetNotFound, AssetNotReady, DatasetDamaged, ValidationFailed),
    )
    def list_rows(
        dataset_id: str,
        split: Annotated[str | None, Query(description="default: the first split")] = None,
        offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="rows at most; fewer when very long")] = 50,
        q: Annotated[str | None, Query(max_length=1000, description="only rows that hold this, folded")] = None,
    ) -> Response:
        """Rows of a split, in the order of the file."""
        row = _ready(registry, dataset_id)
        try:
            part = read_part(describe(registry.folder(row)), split, offset, limit, q)
        except FolderUnreadable as error:
            raise DatasetDamaged(id=row.id) from error
        return ok({"rows": part.rows, "total": part.total, "split": part.split})

    @router.get(
        "/api/datasets/{dataset_id:path}",
        response_model=Ok[schemas.Dataset],
        responses=errors(AssetNotFound, AssetNotReady, DatasetDamaged, ValidationFailed),
    )
    def get_dataset(dataset_id: str, request: Request) -> Response:
        """A data set: its columns, splits, mapping, and what was found in it."""
        row = _ready(registry, dataset_id)
        language = language_of(request)
        try:
            info = describe(registry.folder(row))
        except FolderUnreadable as error:
            raise DatasetDamaged(id=row.id) from error
        return ok({**_asset(registry, row, language), **schemas.of_info(info, language)})

    return router


def _accept(importer: Importer, upload: Upload, folder: Path) -> str:
    try:
        return importer.accept(upload, folder)
    finally:
        discard(folder)


def _ready(registry: Registry, dataset_id: str) -> AssetRow:
    if dataset_id in ("upload", "import") or dataset_id.startswith("download/"):
        # An id may hold a slash, so this route also sees the addresses of those that are only posted to.
        raise HTTPException(405, headers={"Allow": "POST"})
    with registry.database.read() as session:
        row = registry.get(session, check_id("datasetId", dataset_id), "dataset")
    if row.status != "ready":
        raise AssetNotReady(id=row.id, details={"id": row.id, "status": row.status, "error": row.error})
    return row


def _asset(registry: Registry, row: AssetRow, language: Language) -> dict[str, Any]:
    entry = None if row.source == "local" else registry.catalog.find("dataset", row.id)
    return assets.of_row(row, entry, language)
