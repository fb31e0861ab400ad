"""The server: one FastAPI application assembled from the rooms' routes, behind the guard."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from kargah import __version__
from kargah.app import api_docs, event_routes, health
from kargah.app.platform import Platform
from kargah.assets import approval_routes
from kargah.assets import routes as asset_routes
from kargah.datasets import routes as dataset_routes
from kargah.ground.errors import TokenRequired
from kargah.ground.settings import Settings
from kargah.ground.web.envelope import Failure
from kargah.ground.web.guard import Guard, GuardSettings, is_loopback
from kargah.ground.web.handlers import install_handlers
from kargah.ground.web.sse import Drain
from kargah.hub import endpoint_routes, import_routes
from kargah.hub import routes as hub_routes
from kargah.runs import adoption_routes, checkpoint_routes
from kargah.runs import routes as run_routes

MIN_TOKEN_LENGTH = 16
DRAIN_SECONDS = 8


class Application:
    """The application of one platform and what steers its end."""

    def __init__(self, platform: Platform, host: str = "127.0.0.1") -> None:
        self.platform = platform
        self.drain = Drain()
        token = platform.settings.token
        self.guard = GuardSettings(
            bound_host=host,
            token=token.get_secret_value() if token else None,
            cors_origins=platform.settings.cors_origins,
            max_upload_bytes=platform.settings.max_upload_bytes,
            max_import_bytes=platform.settings.max_import_bytes,
        )
        self.api = self._build()
        # Around the whole application, so that an unexpected error's answer carries the strict headers too.
        self._guarded = Guard(self.api, self.guard)

    @property
    def asgi(self) -> ASGIApp:
        """What a server runs."""
        return self._guarded

    def begin_drain(self) -> None:
        """From now on nothing new is taken and streams end."""
        self.guard.draining = True
        self.drain.begin()

    def _build(self) -> FastAPI:
        platform = self.platform
        api = FastAPI(
            title="Kargah",
            version=__version__,
            description="کارگاه: approved models, real training, checkpoints that stay.",
            openapi_url="/api/openapi.json",
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
            responses={
                401: {"model": Failure, "description": "`UNAUTHORIZED`"},
                403: {"model": Failure, "description": "`FOREIGN_ORIGIN`"},
                500: {"model": Failure, "description": "`INTERNAL`"},
                503: {"model": Failure, "description": "`UNAVAILABLE`"},
            },
        )
        install_handlers(api)
        api.include_router(health.build_router(platform))
        api.include_router(hub_routes.build_router(platform.downloads))
        api.include_router(endpoint_routes.build_router(platform.settings, platform.catalog))
        api.include_router(import_routes.build_router(platform.imports, platform.home))
        api.include_router(approval_routes.build_router(platform.approvals))
        api.include_router(asset_routes.build_router(platform.registry, platform.transfers, self.drain))
        api.include_router(
            dataset_routes.build_router(platform.registry, platform.importer, platform.settings.max_upload_bytes)
        )
        api.include_router(run_routes.build_router(platform.runs, self.drain))
        api.include_router(checkpoint_routes.build_router(platform.checkpoints, platform.runs))
        api.include_router(adoption_routes.build_router(platform.adoption, platform.home))
        api.include_router(event_routes.build_router(platform.events, self.drain))
        api.include_router(api_docs.build_router())
        api_docs.tidy_openapi(api)
        return api

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(self.platform.open)
        try:
            yield
        finally:
            await run_in_threadpool(self.platform.close)


class Server(uvicorn.Server):
    """uvicorn's server, which tells the application at the first signal that it is going away."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends at once."""
        self._application.begin_drain()
        super().handle_exit(signal.Signals(sig), frame)


def check_address(settings: Settings, host: str) -> None:
    """Refuse an address that other machines reach while anybody could use it. Raises `TokenRequired`."""
    token = settings.token.get_secret_value() if settings.token else ""
    if not is_loopback(host) and len(token) < MIN_TOKEN_LENGTH:
        raise TokenRequired(host=host, length=MIN_TOKEN_LENGTH)


def serve(settings: Settings, host: str, port: int, *, on_ready: Any = None) -> None:
    """Serve until a signal. Raises `CannotStart`, and `OSError` when the address cannot be had."""
    check_address(settings, host)
    with _bound(host, port) as place:
        _serve(settings, host, place, on_ready)


def _serve(settings: Settings, host: str, place: socket.socket, on_ready: Any) -> None:
    platform = Platform(settings)
    # Runs are watched again while the application is still being put together.
    platform.open()
    application = Application(platform, host)
    config = uvicorn.Config(
        application.asgi,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=30,
    )
    server = Server(config, application)
    if on_ready is not None:
        asyncio.run(_serve_and_tell(server, place, on_ready))
    else:
        server.run([place])


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet: nobody is kept waiting while the server starts."""
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except OSError:
        place.close()
        raise
    return place


async def _serve_and_tell(server: Server, place: socket.socket, on_ready: Any) -> None:
    async def tell() -> None:
        while not server.started and not server.should_exit:
            await asyncio.sleep(0.02)
        if server.started:
            on_ready()

    telling = asyncio.ensure_future(tell())
    await server.serve([place])
    telling.cancel()
