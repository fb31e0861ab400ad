"""Routes of the assets room: the catalog, everything held, deletion, and the progress of what is on its way."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from kargah.assets import schemas
from kargah.assets.catalog import Kind, check_id
from kargah.assets.errors import (
    AssetNotFound,
    BuiltinAsset,
    DatasetNotAllowed,
    DownloadNotFound,
    ModelNotAllowed,
)
from kargah.assets.models import AssetRow
from kargah.assets.registry import KINDS, Registry
from kargah.assets.transfers import Transfers
from kargah.ground.errors import InUse, InvalidState, ValidationFailed
from kargah.ground.home import disk_bytes
from kargah.ground.web.documented import EVENT_STREAM, errors
from kargah.ground.web.envelope import Ok, Wire, language_of, ok
from kargah.ground.web.paging import Cursor, Limit, decode_cursor, encode_cursor
from kargah.ground.web.sse import Drain, end_of_stream, last_event_number, stream
from kargah.text.fold import fold
from kargah.text.sizes import human_size

AssetKind = Literal["model", "dataset", "checkpoint"]


class Freed(Wire):
    """What a deletion gave back."""

    id: str
    kind: str
    freed_bytes: int


def build_router(registry: Registry, transfers: Transfers, drain: Drain) -> APIRouter:
    """The routes, bound to this server's registry and transfers."""
    router = APIRouter()

    @router.get("/api/catalog/models", response_model=Ok[list[schemas.Asset]], tags=["catalog"])
    def list_approved_models(request: Request, q: str | None = None) -> Response:
        """Approved models, whether held or not."""
        return ok(_approved(registry, "model", request, q))

    @router.get("/api/catalog/datasets", response_model=Ok[list[schemas.Asset]], tags=["catalog"])
    def list_approved_datasets(request: Request, q: str | None = None) -> Response:
        """Approved data sets, whether held or not."""
        return ok(_approved(registry, "dataset", request, q))

    @router.get("/api/assets", response_model=schemas.OkAssets, responses=errors(ValidationFailed), tags=["assets"])
    def list_assets(
        request: Request,
        kind: AssetKind | None = None,
        q: str | None = None,
        limit: Limit = 1000,
        cursor: Cursor = None,
    ) -> Response:
        """Everything held, newest first, with a summary of all of it."""
        language = language_of(request)
        with registry.database.read() as session:
            every = registry.listed(session, KINDS)
        matching = [row for row in every if (kind is None or row.kind == kind) and _matches(q, row.id, row.name)]
        start = decode_cursor(cursor, 1)[0] if cursor else 0
        if not isinstance(start, int) or start < 0:
            start = 0
        rows = matching[start : start + limit]
        data = [schemas.of_row(row, _entry_of(registry, row), language) for row in rows]
        following = encode_cursor(start + limit) if start + limit < len(matching) else None
        return ok(data, summary=_summary(registry, every), page={"next": following, "total": len(matching)})

    @router.delete(
        "/api/assets/{asset_id:path}",
        response_model=Ok[Freed],
        responses=errors(AssetNotFound, BuiltinAsset, InUse, InvalidState, ValidationFailed),
        tags=["assets"],
    )
    def delete_asset(asset_id: str, kind: AssetKind | None = None) -> Response:
        """Delete an asset and give its space back."""
        with registry.database.read() as session:
            row = registry.get(session, check_id("id", asset_id), kind)
        freed = registry.remove(row.id, row.kind)
        return ok({"id": row.id, "kind": row.kind, "freedBytes": freed})

    def progress(kind: Kind, asset_id: str, request: Request) -> Response:
        place = check_id(f"{kind}Id", asset_id)
        entry = registry.catalog.find(kind, place)
        snapshot = transfers.latest(kind, entry.id if entry else place)
        if snapshot is None:
            if entry is None:
                registry.catalog.require(kind, place)
            raise DownloadNotFound(id=place)
        last = last_event_number(request)
        if snapshot.ended and last == snapshot.seq:
            return end_of_stream()
        return stream(transfers.events(snapshot, last, language_of(request)), drain)

    streams: dict[int | str, dict[str, Any]] = {**EVENT_STREAM, **errors(ValidationFailed, DownloadNotFound)}

    @router.get(
        "/api/models/download/progress",
        response_class=Response,
        responses={**streams, **errors(ModelNotAllowed, ValidationFailed)},
        tags=["downloads"],
    )
    def model_progress(request: Request, model_id: Annotated[str, Query(alias="modelId")]) -> Response:
        """The stream of a model's download; its last event is `done` or `error`."""
        return progress("model", model_id, request)

    @router.get(
        "/api/datasets/download/progress",
        response_class=Response,
        responses={**streams, **errors(DatasetNotAllowed, ValidationFailed)},
        tags=["downloads"],
    )
    def dataset_progress(request: Request, dataset_id: Annotated[str, Query(alias="datasetId")]) -> Response:
        """The stream of a data set's download or upload; its last event is `done` or `error`."""
        return progress("dataset", dataset_id, request)

    return router


def _approved(registry: Registry, kind: Kind, request: Request, q: str | None) -> list[dict[str, Any]]:
    language = language_of(request)
    with registry.database.read() as session:
        held = {row.id: row for row in registry.listed(session, [kind])}
    return [
        schemas.of_entry(entry, held.get(entry.id), language)
        for entry in registry.catalog.of_kind(kind)
        if _matches(q, entry.id, entry.name, entry.description.fa, entry.description.en)
    ]


def _matches(q: str | None, *texts: str) -> bool:
    return not q or any(fold(q) in fold(text) for text in texts)


def _entry_of(registry: Registry, row: AssetRow) -> Any:
    if row.kind == "checkpoint" or row.source not in ("HuggingFace", "builtin"):
        return None
    return registry.catalog.find(row.kind, row.id)  # type: ignore[arg-type]


def _summary(registry: Registry, rows: list[AssetRow]) -> dict[str, Any]:
    total = sum(row.size_bytes or 0 for row in rows if row.status == "ready")
    folders = [registry.home.root / row.path for row in rows if row.path]
    return {
        "total": len(rows),
        "ready": sum(row.status == "ready" for row in rows),
        "sizeBytes": total,
        "size": human_size(total),
        "diskBytes": disk_bytes([*folders, registry.home.blobs]),
        "byKind": {kind: sum(row.kind == kind for row in rows) for kind in KINDS},
    }
