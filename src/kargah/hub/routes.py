"""Routes of the hub room: starting and steering downloads. Their progress streams are the assets room's."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from kargah.assets.catalog import ID_SCHEMA, Kind, check_id
from kargah.assets.errors import DatasetNotAllowed, ModelNotAllowed
from kargah.assets.transfers import Snapshot
from kargah.ground.errors import DiskFull, InvalidState, Offline, ValidationFailed
from kargah.ground.web.documented import errors
from kargah.ground.web.envelope import Body, Ok, Wire, language_of, ok
from kargah.hub.downloads import Downloads

GivenId = Annotated[str, Field(json_schema_extra=ID_SCHEMA)]


class ModelBody(Body):
    """A model by its id."""

    model_id: GivenId


class DatasetBody(Body):
    """A data set by its id."""

    dataset_id: GivenId


class CancelModelBody(ModelBody):
    """`discard`: throw away the bytes that have arrived, too."""

    discard: bool = False


class CancelDatasetBody(DatasetBody):
    """`discard`: throw away the bytes that have arrived, too."""

    discard: bool = False


class Begun(Wire):
    """A download that was asked for. `started` is false when it is held or under way already."""

    model_id: str | None = None
    dataset_id: str | None = None
    started: bool
    status: str
    download_id: str | None


class Steered(Wire):
    """A download after pause, resume, retry or cancel.

    `started`: the retry began it again. `freedBytes`: what the cancel gave back, null when the bytes stay.
    """

    model_id: str | None = None
    dataset_id: str | None = None
    status: str
    phase: str
    download_id: str
    started: bool = False
    freed_bytes: int | None = None


class QueuePlace(Wire):
    """Where a download stands that waits for its turn; 1 is the next."""

    position: int


class TransferProgress(Wire):
    """A download or an upload, as the newest event of its stream has it, with the asset's `kind` and `id`."""

    kind: str
    id: str
    model_id: str | None = None
    dataset_id: str | None = None
    download_id: str
    status: str
    phase: str
    progress: int
    bytes_downloaded: int
    total_bytes: int | None
    speed: float | None
    eta_seconds: float | None
    file: str | None
    resumed_bytes: int
    until: str | None = None
    queue: QueuePlace | None = None
    error: str | None = None
    message: str | None = None
    details: Any | None = None


def build_router(downloads: Downloads) -> APIRouter:
    """The routes, bound to this server's downloads."""
    router = APIRouter()
    refusals = errors(ValidationFailed, ModelNotAllowed, Offline, DiskFull)
    dataset_refusals = errors(ValidationFailed, DatasetNotAllowed, Offline, DiskFull)
    steering = errors(ValidationFailed, ModelNotAllowed, InvalidState, Offline, DiskFull)
    dataset_steering = errors(ValidationFailed, DatasetNotAllowed, InvalidState, Offline, DiskFull)

    @router.get("/api/downloads", response_model=Ok[list[TransferProgress]], tags=["downloads"])
    def list_downloads(request: Request) -> Response:
        """Downloads and uploads that are on their way or did not arrive, oldest first, each by its newest try."""
        language = language_of(request)
        found = downloads.transfers.not_arrived()
        return ok([{"kind": one.kind, "id": one.asset_id, **one.wire(language)} for one in found])

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
    def cancel_model(body: CancelModelBody) -> Response:
        """End a download; its bytes stay for a later try, unless they are to be discarded, now or after its end."""
        return _cancelled(downloads, "model", check_id("modelId", body.model_id), body.discard)

    @router.post(
        "/api/models/download/retry",
        status_code=202,
        response_model=Ok[Steered],
        responses=steering,
        tags=["downloads"],
    )
    def retry_model(body: ModelBody) -> Response:
        """Ask the hub now instead of waiting; begin one again that ended in an error."""
        return _retried(downloads, "model", check_id("modelId", body.model_id))

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
    def cancel_dataset(body: CancelDatasetBody) -> Response:
        """End a download, whose bytes stay unless they are to be discarded, or an upload, which keeps nothing."""
        return _cancelled(downloads, "dataset", check_id("datasetId", body.dataset_id), body.discard)

    @router.post(
        "/api/datasets/download/retry",
        status_code=202,
        response_model=Ok[Steered],
        responses=dataset_steering,
        tags=["downloads"],
    )
    def retry_dataset(body: DatasetBody) -> Response:
        """Ask the hub now instead of waiting; begin one again that ended in an error."""
        return _retried(downloads, "dataset", check_id("datasetId", body.dataset_id))

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


def _retried(downloads: Downloads, kind: Kind, any_id: str) -> Response:
    snapshot, started = downloads.retry(kind, any_id)
    return _steered(kind, snapshot, started=started)


def _cancelled(downloads: Downloads, kind: Kind, any_id: str, discard: bool) -> Response:
    snapshot, freed = downloads.cancel(kind, any_id, discard=discard)
    return _steered(kind, snapshot, freedBytes=freed)


def _steered(kind: Kind, snapshot: Snapshot, **more: Any) -> Response:
    status = snapshot.state.value if snapshot.ended else "downloading"
    known = {"status": status, "phase": snapshot.phase, "downloadId": snapshot.transfer_id}
    return ok({f"{kind}Id": snapshot.asset_id, **known, **more}, 202)
