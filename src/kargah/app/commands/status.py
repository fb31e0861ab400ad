"""`kargah status`: the server on one screen, or one run in full."""

from typing import Annotated, Any

import typer

from kargah.app.commands import completing
from kargah.app.commands.console import AsJson, connected, figure, print_json, say, show_fields, show_table, tell
from kargah.app.commands.listing import JOBS, every, find_run
from kargah.app.commands.run_report import show_run, show_runs
from kargah.ground.settings import load_settings
from kargah.text.sizes import human_size

UNENDED = "queued,preparing,running,pausing,paused,stopping"


def status(
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help=say("help.argument.run"), autocompletion=completing.runs, show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The server on one screen; with a run, that run in full."""
    with connected() as client:
        if run_id is not None:
            run = client.get(f"/api/training/status/{find_run(client, run_id)}")
            print_json(run) if as_json else show_run(run)
            return
        health = {"url": load_settings().url, **client.get("/api/health")}
        held = client.answer("GET", "/api/assets", params={"limit": 1})["summary"]
        arriving = [asset for asset in every(client, "/api/assets") if asset["status"] == "downloading"]
        runs = every(client, JOBS, status=UNENDED)
    if as_json:
        print_json({"server": health, "assets": held, "arriving": arriving, "runs": runs})
    else:
        _show(health, held, arriving, runs)


def _show(
    health: dict[str, Any], held: dict[str, Any], arriving: list[dict[str, Any]], runs: list[dict[str, Any]]
) -> None:
    show_fields(
        [
            ("server", f"{health['url']} · {say('status.' + health['status'])}"),
            ("version", health["version"]),
            ("database", health["database"]),
            ("network", say("overview.offline") if health["offline"] else None),
            ("training", None if health["computeInstalled"] else say("doctor.noCompute")),
            ("disk", _disk(held)),
        ]
    )
    tell("")
    if arriving:
        show_table(("arriving", "size", "progress"), [_arrival(asset) for asset in arriving])
        tell("")
    if runs:
        show_runs(runs)
    else:
        tell(say("overview.noRuns"))


def _arrival(asset: dict[str, Any]) -> tuple[str, str, str]:
    return asset["id"], asset["size"] or "—", f"{asset['progress']}%"


def _disk(held: dict[str, Any]) -> str:
    counts = {kind: held["byKind"].get(kind, 0) for kind in ("model", "dataset", "checkpoint")}
    return say("overview.held", size=figure(human_size(held["diskBytes"])), **counts)
