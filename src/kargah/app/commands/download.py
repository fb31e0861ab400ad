"""`kargah download`: bring an approved model or data set here."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from kargah.app.commands.console import EXIT_FAILED, connected, err, fail, out, print_json, say


def download(
    asset_id: Annotated[str, typer.Argument(metavar="ID", help="id in the catalog")],
    dataset: Annotated[bool, typer.Option("--dataset", help="it is a data set, not a model")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the last event as JSON, for programs")] = False,
) -> None:
    """Bring an approved model or data set here. Ctrl-C only stops watching: the server goes on."""
    kind = "dataset" if dataset else "model"
    with connected() as client:
        begun = client.post(f"/api/{kind}s/download/start", {f"{kind}Id": asset_id})
        if begun["status"] == "ready":
            if as_json:
                print_json({**begun, "progress": 100})
            else:
                out.print(say("alreadyHere", id=asset_id), markup=False)
            return
        events = client.stream(f"/api/{kind}s/download/progress", **{f"{kind}Id": asset_id})
        last = _drain(events) if as_json else _watch(events)
    if as_json:
        print_json(last)
    if last["status"] == "error":
        fail(f"{last['message']} [{last['error']}]", EXIT_FAILED)
    if not as_json:
        out.print(say("arrived", id=asset_id), markup=False)


def _drain(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {"status": "error", "error": "INTERNAL", "message": ""}
    for event in events:
        last = event
    return last


def _watch(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {"status": "error", "error": "INTERNAL", "message": ""}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
    )
    with bar:
        task = bar.add_task("", total=None)
        for last in events:
            phase = say(f"phase.{last['phase']}")
            bar.update(task, description=phase, completed=last["bytesDownloaded"], total=last["totalBytes"])
    return last
