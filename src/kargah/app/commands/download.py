"""`kargah download`: bring an approved model or data set here."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from kargah.app.commands import completing
from kargah.app.commands.console import (
    EXIT_FAILED,
    AsJson,
    connected,
    fail,
    isolated,
    print_json,
    progress_bar,
    say,
    tell,
)


def download(
    asset_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help=say("help.download.id"), autocompletion=completing.approved, show_default=False
        ),
    ],
    dataset: Annotated[bool, typer.Option("--dataset", help=say("help.download.dataset"))] = False,
    as_json: AsJson = False,
) -> None:
    """Bring an approved model or data set here. Ctrl-C only stops watching: the server goes on."""
    kind = "dataset" if dataset else "model"
    with connected("watchingEnded") as client:
        begun = client.post(f"/api/{kind}s/download/start", {f"{kind}Id": asset_id})
        if begun["status"] == "ready":
            if as_json:
                print_json({**begun, "progress": 100})
            else:
                tell(say("alreadyHere", id=asset_id))
            return
        events = client.stream(f"/api/{kind}s/download/progress", **{f"{kind}Id": asset_id})
        last = last_event(events) if as_json else watch(events)
    if as_json:
        print_json(last)
    if last["status"] == "error":
        fail(f"{last['message']} [{last['error']}]", EXIT_FAILED)
    if not as_json:
        tell(say("arrived", id=asset_id))


def last_event(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The event that a stream of progress ends with."""
    last: dict[str, Any] = {"status": "error", "error": "INTERNAL", "message": ""}
    for event in events:
        last = event
    return last


def watch(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The same, with a live bar meanwhile."""
    last: dict[str, Any] = {"status": "error", "error": "INTERNAL", "message": ""}
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with progress_bar(TextColumn("{task.description}"), *columns) as bar:
        task = bar.add_task("", total=None)
        for last in events:
            phase = isolated(say(f"phase.{last['phase']}"))
            bar.update(task, description=phase, completed=last["bytesDownloaded"], total=last["totalBytes"])
    return last
