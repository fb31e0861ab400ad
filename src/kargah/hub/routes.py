"""Routes of the hub room: starting and steering downloads. Their progress streams are the assets room's."""

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from kargah.assets.catalog import ID_SCHEMA, Kind, check_id
from kargah.assets.errors import DatasetNotAllowed, ModelNotAllowed
from kargah.assets.transfers import Snapshot
from kargah.ground.errors import DiskFull, InvalidState, Offline, ValidationFailed
from kargah.ground.web.documented import errors
from kargah.ground.web.envelope import Body, Ok, Wire, ok
from kargah.hub.downloads import Downloads

GivenId = Annotated[str, Field(json_schema_extra=ID_SCHEMA)]


class ModelBody(Body):
    """A model by its id."""

    model_id: GivenId


class DatasetBody(Body):
    """A data set by its id."""

    dataset_id: GivenId


class Begun(Wire):
    """A download that was asked for. `started` is false when it is held or under way already."""

    model_id: str | None = None
    dataset_id: str | None = None
    started: bool
    status: str
    download_id: str | None


class Steered(Wire):
    """A download after pause, resume or cancel."""

    model_id: str | None = None
    dataset_id: str | None = None
    status: str
    phase: str
    download_id: str


def build_router(downloads: Downloads) -> APIRouter:
    """The routes, bound to this server's downloads."""
    router = APIRouter()
    refusals = errors(ValidationFailed, ModelNotAllowed, Offline, DiskFull)
    dataset_refusals = errors(ValidationFailed, DatasetNotAllowed, Offline, DiskFull)
    steering = errors(ValidationFailed, ModelNotAllowed, InvalidState, Offline)
    dataset_steering = errors(ValidationFailed, DatasetNotAllowed, InvalidState, Offline)

    @router.post("/api/models/download/start", response_model=Ok[Begun], responses=refusals, tags=["downloads"])
    def start_model(body: ModelBody) -> Response:
        """Fetch an approved model."""
        return _start(downloads, "model", check_id("modelId", body.model_id))

    @router.post(
        "/api/datasets/download/start", response_model=Ok[Begun], responses=dataset_refusals, tags=["downloads"]
    )
    def start_dataset(body: DatasetBody) -> Response:
        """Fetch an approved data set."""
        return _start(downloads, "dataset", check_id("datasetId", body.dataset_id))

    @router.post(
        "/api/models/download/pause",
        status_code=202,
        response_model=Ok[Steered],
        responses=steering,
        tags=["downloads"],
    )
    def pause_model(body: ModelBody) -> Response:
        """Let go of the network and keep the bytes."""
        return _steered("model", downloads.pause("model", check_id("modelId", body.model_id)))

    @router.post(
        "/api/models/download/resume",
        status_code=202,
        response_model=Ok[Steered],
        responses=steering,
        tags=["downloads"],
    )
    def resume_model(body: ModelBody) -> Response:
        """Go on with a paused download."""
        return _steered("model", downloads.resume("model", check_id("modelId", body.model_id)))

    @router.post(
        "/api/models/download/cancel",
        status_code=202,
        response_model=Ok[Steered],
        responses=steering,
        tags=["downloads"],
    )
    def cancel_model(body: ModelBody) -> Response:
        """End a download; its bytes stay for a later try."""
        return _steered("model", downloads.cancel("model", check_id("modelId", body.model_id)))

    @router.post(
        "/api/datasets/download/pause",
        status_code=202,
        response_model=Ok[Steered],
        responses=dataset_steering,
        tags=["downloads"],
    )
    def pause_dataset(body: DatasetBody) -> Response:
        """Let go of the network and keep the bytes."""
        return _steered("dataset", downloads.pause("dataset", check_id("datasetId", body.dataset_id)))

    @router.post(
        "/api/datasets/download/resume",
        status_code=202,
        response_model=Ok[Steered],
        responses=dataset_steering,
        tags=["downloads"],
    )
    def resume_dataset(body: DatasetBody) -> Response:
        """Go on with a paused download."""
        return _steered("dataset", downloads.resume("dataset", check_id("datasetId", body.dataset_id)))

    @router.post(
        "/api/datasets/download/cancel",
        status_code=202,
        response_model=Ok[Steered],
        responses=dataset_steering,
        tags=["downloads"],
    )
    def cancel_dataset(body: DatasetBody) -> Response:
        """End a download; its bytes stay for a later try."""
        return _steered("dataset", downloads.cancel("dataset", check_id("datasetId", body.dataset_id)))

    return router


def _start(downloads: Downloads, kind: Kind, any_id: str) -> Response:
    entry = downloads.catalog.require(kind, any_id)
    snapshot, started = downloads.start(kind, entry.id)
    ended = snapshot is None or snapshot.ended
    data: dict[str, Any] = {
        f"{kind}Id": entry.id,
        "started": started,
        "status": "ready" if ended and not started else "downloading",
        "downloadId": snapshot.transfer_id if snapshot else None,
    }
    return ok(data)


def _steered(kind: Kind, snapshot: Snapshot) -> Response:
    status = snapshot.state.value if snapshot.ended else "downloading"
    return ok(
        {f"{kind}Id": snapshot.asset_id, "status": status, "phase": snapshot.phase, "downloadId": snapshot.transfer_id},
        202,
    )
