"""Every route of the API that the client knows, and which of them may be asked twice.

What reads may always be asked again. Of what changes something only a `repeatable` route may be, after its answer was
lost: the server does it once however often it is asked.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path with `{places}`."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    repeatable: bool = False

    def at(self, **places: str) -> str:
        """The path with its places filled in. Raises `ValueError` for an id that is none."""
        for name, value in places.items():
            if not value.strip("./ "):
                raise ValueError(f"{name} must be an id, not {value!r}")
        return self.path.format_map({name: quote(value, safe="") for name, value in places.items()})


@dataclass(frozen=True, slots=True)
class DownloadRoutes:
    """The routes of the downloads of one kind of asset."""

    start: Route
    progress: Route
    pause: Route
    resume: Route
    retry: Route
    cancel: Route
    bring: Route


def _downloads(kind: Literal["models", "datasets"]) -> DownloadRoutes:
    path = f"/api/{kind}/download"
    return DownloadRoutes(
        start=Route("POST", f"{path}/start", repeatable=True),
        progress=Route("GET", f"{path}/progress"),
        pause=Route("POST", f"{path}/pause", repeatable=True),
        resume=Route("POST", f"{path}/resume"),
        retry=Route("POST", f"{path}/retry"),
        cancel=Route("POST", f"{path}/cancel", repeatable=True),
        bring=Route("POST", f"/api/{kind}/import"),
    )


HEALTH = Route("GET", "/api/health")
EVENTS = Route("GET", "/api/events")

APPROVED_MODELS = Route("GET", "/api/catalog/models")
APPROVED_DATASETS = Route("GET", "/api/catalog/datasets")
REQUESTS = Route("GET", "/api/catalog/requests")
REQUEST = Route("POST", "/api/catalog/requests")
DECLINE_REQUEST = Route("POST", "/api/catalog/requests/{request_id}/decline")
WITHDRAW_REQUEST = Route("DELETE", "/api/catalog/requests/{request_id}")

ASSETS = Route("GET", "/api/assets")
DELETE_ASSET = Route("DELETE", "/api/assets/{asset_id}")

DOWNLOADS = Route("GET", "/api/downloads")
MODEL_DOWNLOADS = _downloads("models")
DATASET_DOWNLOADS = _downloads("datasets")

HUB_ENDPOINTS = Route("GET", "/api/hub/endpoints")
TEST_HUB_ENDPOINTS = Route("POST", "/api/hub/endpoints/test", repeatable=True)

UPLOAD = Route("POST", "/api/datasets/upload")
DATASETS = Route("GET", "/api/datasets")
DATASET = Route("GET", "/api/datasets/{dataset_id}")
ROWS = Route("GET", "/api/datasets/{dataset_id}/rows")

START_RUN = Route("POST", "/api/training/start")
ADOPT_RUNS = Route("POST", "/api/training/adopt")
PAUSE_RUN = Route("POST", "/api/training/pause/{run_id}")
RESUME_RUN = Route("POST", "/api/training/resume/{run_id}")
STOP_RUN = Route("POST", "/api/training/stop/{run_id}")
QUEUE = Route("GET", "/api/training/queue")
MOVE_RUN = Route("POST", "/api/training/queue/{run_id}", repeatable=True)
RUN = Route("GET", "/api/training/status/{run_id}")
RUN_STREAM = Route("GET", "/api/training/stream/{run_id}")
CLONE_RUN = Route("POST", "/api/training/clone/{run_id}")

CHECKPOINTS = Route("GET", "/api/training/assets")
CHECKPOINT = Route("GET", "/api/training/checkpoints/{checkpoint_id}")
DELETE_CHECKPOINT = Route("DELETE", "/api/training/checkpoints/{checkpoint_id}")
DOWNLOAD_CHECKPOINT = Route("GET", "/api/training/checkpoints/{checkpoint_id}/download")
RESTORE_CHECKPOINT = Route("POST", "/api/training/checkpoints/{checkpoint_id}/restore")
PIN_CHECKPOINT = Route("POST", "/api/training/checkpoints/{checkpoint_id}/pin", repeatable=True)
PRUNE_CHECKPOINTS = Route("POST", "/api/training/checkpoints/prune")

JOBS = Route("GET", "/api/analysis/training/jobs")
JOB = Route("GET", "/api/analysis/training/status/{run_id}")
COMPARE = Route("GET", "/api/analysis/training/compare")
EXPORT = Route("GET", "/api/analysis/training/export/{run_id}")
