"""`GET /api/health`: whether the server is ready, and on what it stands."""

from typing import Any, Literal

from fastapi import APIRouter, Response

from kargah import __version__
from kargah.app.platform import Platform
from kargah.ground.web.envelope import Ok, Wire, ok
from kargah.runs.executor import compute_installed


class Health(Wire):
    """The state of the server."""

    status: Literal["ready"]
    version: str
    database: str
    schema_revision: str
    offline: bool
    compute_installed: bool


def build_router(platform: Platform) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get("/api/health", response_model=Ok[Health], tags=["system"])
    def health() -> Response:
        """Answers once the server is ready; it listens only then."""
        data: dict[str, Any] = {
            "status": "ready",
            "version": __version__,
            "database": platform.database.engine.dialect.name,
            "schemaRevision": platform.revision,
            "offline": platform.settings.offline,
            "computeInstalled": compute_installed(),
        }
        return ok(data)

    return router
