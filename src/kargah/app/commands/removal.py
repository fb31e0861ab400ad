"""Deleting what is held, after a question: the same for models, data sets and checkpoints."""

import sys
from typing import Annotated, Any

import typer

from kargah.app.commands.console import (
    EXIT_FAILED,
    EXIT_USED_WRONGLY,
    connected,
    err,
    fail,
    figure,
    print_json,
    say,
    tell,
)
from kargah.app.commands.listing import as_path, find_asset
from kargah.text.sizes import human_size

Yes = Annotated[bool, typer.Option("--yes", "-y", help=say("help.yes"))]

_AGREED = ("y", "yes", "بله", "آری", "ب", "آ")


def delete(given: str, kind: str | None, yes: bool, as_json: bool) -> None:
    """Delete the asset that `given` names and tell what that freed; asks first unless `yes`."""
    with connected() as client:
        asset = find_asset(client, given, kind)
        if not yes:
            _ask(asset)
        freed = client.delete(f"/api/assets/{as_path(asset['id'])}", kind=asset["kind"])
    if as_json:
        print_json(freed)
    else:
        tell(say("deleted", id=asset["id"], size=figure(human_size(freed["freedBytes"]))))


def confirm(question: str) -> None:
    """Ask before something is deleted. Ends the command for a no, and where there is nobody to ask."""
    if sys.stdin is None or not sys.stdin.isatty():
        fail(say("needsYes"), EXIT_USED_WRONGLY)
    tell(question, to_errors=True)
    err.print(say("askAnswer"), end="", markup=False)
    try:
        answer = input()
    except EOFError:
        answer = ""
    if answer.strip().lower() not in _AGREED:
        fail(say("notDeleted"), EXIT_FAILED)


def _ask(asset: dict[str, Any]) -> None:
    names = {
        "id": asset["id"],
        "name": asset["name"],
        "size": figure(asset["size"]),
        "kind": say(f"kind.{asset['kind']}"),
    }
    confirm(say("askDelete", **names))
