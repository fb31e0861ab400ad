"""`kargah serve`: the server."""

import logging
from typing import Annotated

import typer

from kargah.app.commands.console import EXIT_FAILED, fail, language, say, tell
from kargah.app.commands.terminal import default_signals
from kargah.ground.errors import CannotStart
from kargah.ground.settings import load_settings


def serve(
    host: Annotated[str, typer.Option(help=say("help.serve.host"))] = "127.0.0.1",
    port: Annotated[int, typer.Option(help=say("help.serve.port"), min=1, max=65535)] = 8765,
) -> None:
    """Serve the API and the face. Ends cleanly on Ctrl-C; runs go on."""
    # Only here: the server's own imports take longer than most other verbs need for all they do.
    from kargah.app import server

    default_signals()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings()
        server.serve(settings, host, port, on_ready=lambda: _ready(host, port, str(settings.home)))
    except CannotStart as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    except OSError as error:
        fail(say("cannotListen", host=host, port=str(port), problem=error.strerror or str(error)), EXIT_FAILED)


def _ready(host: str, port: int, home: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    tell(say("serving", url=f"http://{shown}:{port}"))
    tell(say("home", path=home))
