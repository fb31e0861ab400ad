"""Routes of the hub's endpoints: which are configured, and a test of each. No token is ever sent out."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from kargah.assets.catalog import Catalog
from kargah.ground.errors import Offline, ValidationFailed
from kargah.ground.settings import Settings
from kargah.ground.web.documented import errors
from kargah.ground.web.envelope import Body, Ok, Wire, language_of, ok
from kargah.hub.endpoint_outcomes import described, outcomes, repo_ids_of


class EndpointBody(Body):
    """The one endpoint to test; without it all are."""

    url: Annotated[str | None, Field(min_length=1, max_length=2000)] = None


class ConfiguredEndpoint(Wire):
    """One endpoint of the settings; `number` counts from 1 in the order they are tried."""

    number: int
    url: str
    has_token: bool
    is_default: bool


class TestedEndpoint(ConfiguredEndpoint):
    """One endpoint after its test. `failed_step` is `proxy`, `dns`, `tcp`, `tls`, `http` or `hub`."""

    ok: bool
    failed_step: str | None
    reason: str | None
    message: str
    uses_proxy: bool | None
    latency_ms: float | None
    bytes_per_second: int | None


def build_router(settings: Settings, catalog: Catalog) -> APIRouter:
    """The routes, bound to this server's settings."""
    router = APIRouter()

    @router.get("/api/hub/endpoints", response_model=Ok[list[ConfiguredEndpoint]], tags=["hub"])
    def endpoints() -> Response:
        """The hub's endpoints in the order they are tried."""
        return ok(described(settings))

    @router.post(
        "/api/hub/endpoints/test",
        response_model=Ok[list[TestedEndpoint]],
        responses=errors(ValidationFailed, Offline),
        tags=["hub"],
    )
    def try_endpoints(body: EndpointBody, request: Request) -> Response:
        """Test the endpoints, or one of them: which step fails, latency, speed of a small file."""
        return ok(outcomes(settings, repo_ids_of(catalog), language_of(request), body.url))

    return router
