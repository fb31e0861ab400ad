"""`kargah runs`: the history of runs, one run in full, and pausing, resuming or stopping one."""

from typing import Annotated, Any

import typer

from kargah.app.commands import completing
from kargah.app.commands.console import AsJson, connected, print_json, say, tell
from kargah.app.commands.groups import ListingGroup
from kargah.app.commands.listing import JOBS, every, find_run
from kargah.app.commands.run_report import show_run, show_runs

app = typer.Typer(cls=ListingGroup, help=say("help.runs"))

RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help=say("help.argument.run"), autocompletion=completing.runs, show_default=False),
]


@app.command("list", help=say("help.runs.list"))
def list_runs(
    status: Annotated[str | None, typer.Option("--status", help=say("help.runs.status"))] = None,
    q: Annotated[str | None, typer.Option("--search", "-q", help=say("help.search"))] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help=say("help.limit"))] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    with connected() as client:
        rows: list[dict[str, Any]] = every(client, JOBS, limit, status=status, q=q)
    if as_json:
        print_json(rows)
    else:
        show_runs(rows)


@app.command("show", help=say("help.runs.show"))
def show(run_id: RunId, as_json: AsJson = False) -> None:
    """One run with its values, the last of its curve and of its log."""
    with connected() as client:
        run = client.get(f"/api/training/status/{find_run(client, run_id)}")
    if as_json:
        print_json(run)
    else:
        show_run(run)


@app.command("stop", help=say("help.runs.stop"))
def stop(run_id: RunId, as_json: AsJson = False) -> None:
    """End a run; if it trains, with a checkpoint."""
    _wish("stop", run_id, as_json)


@app.command("pause", help=say("help.runs.pause"))
def pause(run_id: RunId, as_json: AsJson = False) -> None:
    """Let a run write a checkpoint and leave the machine."""
    _wish("pause", run_id, as_json)


@app.command("resume", help=say("help.runs.resume"))
def resume(run_id: RunId, as_json: AsJson = False) -> None:
    """Put a paused run into the queue again."""
    _wish("resume", run_id, as_json)


def _wish(verb: str, run_id: str, as_json: bool) -> None:
    with connected() as client:
        state = client.post(f"/api/training/{verb}/{find_run(client, run_id)}")
    if as_json:
        print_json(state)
    else:
        tell(say(f"status.{state['status']}"))
