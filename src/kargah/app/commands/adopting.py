"""`kargah runs adopt`: runs that were trained without the server are taken over, by it or, if none is up, here."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kargah.app.commands.console import (
    EXIT_FAILED,
    EXIT_USED_WRONGLY,
    AsJson,
    connected,
    fail,
    language,
    print_json,
    say,
    tell,
)
from kargah.app.platform import Platform
from kargah.ground.errors import KargahError
from kargah.ground.home import Home
from kargah.ground.settings import Settings, load_settings
from kargah.runs.adoption import run_dirs
from kargah.runs.adoption_routes import as_wire
from kargah.runs.adoption_tickets import drop_ticket, write_ticket
from kargah.text.messages import translate

ANSWER_SECONDS = 3600.0
"""How long copying may take before the server answers."""


def adopt(
    path: Annotated[Path, typer.Argument(metavar="DIR", help=say("help.runs.adopt.path"), show_default=False)],
    move: Annotated[bool, typer.Option("--move", help=say("help.runs.adopt.move"))] = False,
    as_json: AsJson = False,
) -> None:
    """Take over a run directory, or every one in a folder. Exit code 1 when one was left out."""
    place = path.absolute()
    if not place.is_dir() or not run_dirs(place):
        fail(say("adoptNothing", path=str(path)), EXIT_USED_WRONGLY)
    try:
        settings = load_settings()
        done = _by_server(settings, place, move) if Home(settings.home).server_pid() else _here(settings, place, move)
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    except OSError as error:
        fail(f"{error.filename or place}: {error.strerror}", EXIT_FAILED)
    if as_json:
        print_json(done)
    else:
        _show(done)
    if done["skipped"]:
        raise typer.Exit(EXIT_FAILED)


def _by_server(settings: Settings, path: Path, move: bool) -> dict[str, Any]:
    word = write_ticket(settings.home, path, move=move)
    try:
        with connected("watchingEnded") as client:
            body = {"path": str(path), "move": move, "ticket": word}
            answer = client.answer("POST", "/api/training/adopt", json=body, timeout=ANSWER_SECONDS)
    finally:
        drop_ticket(settings.home, word)
    done: dict[str, Any] = answer["data"]
    return done


def _here(settings: Settings, path: Path, move: bool) -> dict[str, Any]:
    platform = Platform(settings)
    try:
        return as_wire(platform.adoption.adopt(path, move=move), language())
    finally:
        platform.database.close()
        platform.home.release()


def _show(done: dict[str, Any]) -> None:
    for run in done["adopted"]:
        tell(say("adopted", name=run["name"], id=run["runId"], status=say(f"status.{run['status']}")))
        for number in run["damagedAttempts"]:
            tell(f"  {translate('log.journalDamaged', language(), attempt=number)}", style="yellow")
    for one in done["skipped"]:
        tell(f"{one['path']}: {one['message']} [{one['error']}]", style="yellow")
