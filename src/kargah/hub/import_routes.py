"""Routes of imports: an approved model or data set is brought by hand. Its progress is the stream of downloads."""

import contextlib
import errno
import shutil
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from kargah.assets.catalog import ID_SCHEMA, Kind
from kargah.assets.errors import DatasetNotAllowed, ModelNotAllowed
from kargah.ground.errors import DiskFull, InvalidState, TooLarge, ValidationFailed
from kargah.ground.home import Home
from kargah.ground.web.documented import errors
from kargah.ground.web.envelope import Ok, ok
from kargah.ground.web.multipart import check_length, limited
from kargah.hub.import_errors import (
    ArchiveDamaged,
    ArchiveEncrypted,
    ArchiveTooLarge,
    ImportEmpty,
    ImportUnnamed,
    UnsafePath,
)
from kargah.hub.import_receiving import receive
from kargah.hub.importing import Imports
from kargah.hub.routes import Begun

_WRONG = (
    *(ValidationFailed, InvalidState, TooLarge, DiskFull, UnsafePath, ImportEmpty, ImportUnnamed),
    *(ArchiveDamaged, ArchiveEncrypted, ArchiveTooLarge),
)


def build_router(imports: Imports, home: Home) -> APIRouter:
    """The routes, bound to this server's imports."""
    router = APIRouter(tags=["downloads"])

    @router.post(
        "/api/models/import",
        status_code=202,
        response_model=Ok[Begun],
        responses=errors(ModelNotAllowed, *_WRONG),
        openapi_extra=_form("model"),
    )
    async def import_model(request: Request) -> Response:
        """Bring an approved model from a folder or an archive; progress is `/api/models/download/progress?modelId=…`.

        Nothing is taken when it is ready already (`started` is false). The answer comes when all bytes are received.
        """
        return await _take(imports, home, "model", request)

    @router.post(
        "/api/datasets/import",
        status_code=202,
        response_model=Ok[Begun],
        responses=errors(DatasetNotAllowed, *_WRONG),
        openapi_extra=_form("dataset"),
    )
    async def import_dataset(request: Request) -> Response:
        """Bring an approved data set; progress is `/api/datasets/download/progress?datasetId=…`."""
        return await _take(imports, home, "dataset", request)

    return router


def _form(kind: Kind) -> dict[str, Any]:
    properties = {
        f"{kind}Id": {"type": "string", **ID_SCHEMA, "description": "where the files do not tell which entry it is"},
        "commit": {"type": "string", "pattern": "^[0-9a-f]{40}$", "description": "the commit the files are of"},
        "digests": {
            "type": "string",
            "description": "JSON, path to digest, as the place the files come from knows them; each is checked",
            "examples": ['{"config.json": "git-sha1:0123456789abcdef0123456789abcdef01234567"}'],
        },
        "file": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "one zip, tar, tar.gz or tar.zst; or the files of a folder, each named by its path in it",
        },
    }
    schema = {"type": "object", "required": ["file"], "additionalProperties": False, "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def _take(imports: Imports, home: Home, kind: Kind, request: Request) -> Response:
    check_length(request, imports.max_bytes, home.free_bytes())
    content_type = request.headers.get("content-type", "")
    try:
        order, folder = await receive(limited(request, imports.max_bytes), content_type, kind, imports.folder)
    except ClientDisconnect:
        return Response(status_code=400)  # nobody is there to read it
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(details={"freeBytes": home.free_bytes()}) from error
        raise
    try:
        entry, snapshot, started = await run_in_threadpool(imports.accept, order, folder)
    finally:
        # Gone already where it was taken over.
        with contextlib.suppress(FileNotFoundError):
            await run_in_threadpool(shutil.rmtree, folder)
    data = {
        f"{entry.kind}Id": entry.id,
        "started": started,
        "status": "downloading" if started else "ready",
        "downloadId": snapshot.transfer_id if snapshot else None,
    }
    return ok(data, 202)
