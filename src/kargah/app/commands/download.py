"""`kargah download`: bring an approved model or data set here, and watch it come."""

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
    figure,
    isolated,
    print_json,
    progress_bar,
    say,
    tell,
)
from kargah.text.sizes import human_size


def download(
    asset_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help=say("help.download.id"), autocompletion=completing.approved, show_default=False
        ),
    ],
    dataset: Annotated[bool, typer.Option("--dataset", help=say("help.download.dataset"))] = False,
    wait: Annotated[bool, typer.Option("--wait/--detach", help=say("help.download.wait"))] = True,
    as_json: AsJson = False,
) -> None:
    """Bring an approved model or data set here. Ctrl-C only stops watching: the server goes on."""
    kind = "dataset" if dataset else "model"
    with connected("downloadWatchEnded") as client:
        begun = client.post(f"/api/{kind}s/download/start", {f"{kind}Id": asset_id})
        if begun["status"] == "ready":
            if as_json:
                print_json({**begun, "progress": 100})
            else:
                tell(say("alreadyHere", id=asset_id))
            return
        if not wait:
            if as_json:
                print_json(begun)
            else:
                tell(say("downloadBegun" if begun["started"] else "downloadUnderWay", id=asset_id))
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
    resumed = False
    with progress_bar(TextColumn("{task.description}"), *columns) as bar:
        task = bar.add_task("", total=None)
        for last in events:
            if last["resumedBytes"] and not resumed:
                resumed = True
                bar.console.print(say("resumedFrom", size=figure(human_size(last["resumedBytes"]))), markup=False)
            bar.update(
                task,
                description=isolated(phase_of(last)),
                completed=last["bytesDownloaded"],
                total=last["totalBytes"],
            )
    return last


def phase_of(event: dict[str, Any]) -> str:
    """What an event says is going on: the phase, with the place in the queue or the end of a wait."""
    if event["phase"] == "rateLimited" and event.get("until"):
        # The time of day is enough, and the wait is one of minutes.
        return say("rateLimitedUntil", time=figure(event["until"][11:19]))
    if event.get("queue"):
        return say("queuedAt", position=event["queue"]["position"])
    return say(f"phase.{event['phase']}")
