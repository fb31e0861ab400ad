"""`kargah serve`: the server."""

import logging
from typing import Annotated

import typer

from kargah.app import server
from kargah.app.commands.console import EXIT_FAILED, err, fail, language, out, say
from kargah.ground.errors import CannotStart
from kargah.ground.settings import load_settings


def serve(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on", min=1, max=65535)] = 8765,
) -> None:
    """Serve the API and the face. Ends cleanly on Ctrl-C; runs go on."""

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings()
        server.serve(settings, host, port, on_ready=lambda: _ready(host, port, str(settings.home)))
    except CannotStart as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    except OSError as error:
        err.print(say("cannotListen", host=host, port=str(port), problem=error.strerror or str(error)), style="red")
        raise typer.Exit(EXIT_FAILED) from error


def _ready(host: str, port: int, home: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    out.print(say("serving", url=f"http://{shown}:{port}"), markup=False, soft_wrap=True)
    out.print(say("home", path=home), markup=False, soft_wrap=True)
