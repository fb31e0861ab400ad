"""`kargah runs`: the history of runs, one run in full, and pausing, resuming or stopping one."""

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from kargah.app.commands import completing, later
from kargah.app.commands.console import AsJson, connected, print_json, say, short_id, show_table, tell
from kargah.app.commands.groups import ListingGroup
from kargah.app.commands.listing import JOBS, every, find_run
from kargah.app.commands.run_report import show_run, show_runs
from kargah.text.sizes import human_size

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
def stop(
    run_id: RunId,
    force: Annotated[bool, typer.Option("--force", help=say("help.runs.force"))] = False,
    as_json: AsJson = False,
) -> None:
    """End a run; if it trains, with a checkpoint."""
    _wish("stop", run_id, as_json, **({"force": "true"} if force else {}))


@app.command("pause", help=say("help.runs.pause"))
def pause(run_id: RunId, as_json: AsJson = False) -> None:
    """Let a run write a checkpoint and leave the machine."""
    _wish("pause", run_id, as_json)


@app.command("resume", help=say("help.runs.resume"))
def resume(run_id: RunId, as_json: AsJson = False) -> None:
    """Put a paused run into the queue again."""
    _wish("resume", run_id, as_json)


later.add(app, "clone", say("help.runs.clone"), "cloning.clone")
later.add(app, "adopt", say("help.runs.adopt"), "adopting.adopt")


@app.command("queue", help=say("help.runs.queue"))
def queue(as_json: AsJson = False) -> None:
    """The runs that wait, in their order."""
    with connected() as client:
        _show_queue(client.get("/api/training/queue"), as_json)


@app.command("move", help=say("help.runs.move"))
def move(
    run_id: RunId,
    position: Annotated[int, typer.Argument(metavar="PLACE", min=1, help=say("help.runs.place"), show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Give a waiting run another place in the queue."""
    with connected() as client:
        path = f"/api/training/queue/{find_run(client, run_id)}"
        _show_queue(client.post(path, {"position": position}), as_json)


def _show_queue(whole: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(whole)
        return
    memory = {"reserved": human_size(whole["reservedBytes"]), "memory": human_size(whole["memoryBytes"])}
    tell(say("queueOffers", running=len(whole["running"]), slots=whole["slots"], **memory))
    columns = ("position", "id", "name", "waits")
    rows = [(str(one["position"]), short_id(one["runId"]), one["name"], one["message"]) for one in whole["waiting"]]
    show_table(columns, rows, fold=("name",))


def _wish(verb: str, run_id: str, as_json: bool, **query: str) -> None:
    with connected() as client:
        path = f"/api/training/{verb}/{find_run(client, run_id)}"
        state = client.post(f"{path}?{urlencode(query)}" if query else path)
    if as_json:
        print_json(state)
    else:
        tell(say(f"status.{state['status']}"))
