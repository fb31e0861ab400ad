"""`kargah checkpoints`: the checkpoints that runs wrote, one of them in full, and deleting one."""

from typing import Annotated, Any

import typer

from kargah.app.commands import completing
from kargah.app.commands.assets import asset_fields
from kargah.app.commands.console import (
    AsJson,
    connected,
    number,
    print_json,
    say,
    short_id,
    show_fields,
    show_table,
)
from kargah.app.commands.groups import ListingGroup
from kargah.app.commands.listing import find_asset, find_run
from kargah.app.commands.removal import Yes
from kargah.app.commands.removal import delete as delete_asset

app = typer.Typer(cls=ListingGroup, help=say("help.checkpoints"))

CheckpointId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help=say("help.argument.checkpoint"), autocompletion=completing.checkpoints, show_default=False
    ),
]


@app.command("list", help=say("help.checkpoints.list"))
def list_checkpoints(
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help=say("help.argument.run"), autocompletion=completing.runs, show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Checkpoints, newest first; with a run, its own."""
    with connected() as client:
        run = find_run(client, run_id) if run_id else None
        found: list[dict[str, Any]] = client.get("/api/training/assets", runId=run)
    if as_json:
        print_json(found)
        return
    columns = ("id", "run", "step", "epoch", "accuracy", "best", "size")
    show_table(columns, [_row(checkpoint) for checkpoint in found])


@app.command("show", help=say("help.checkpoints.show"))
def show(checkpoint_id: CheckpointId, as_json: AsJson = False) -> None:
    """One checkpoint in full."""
    with connected() as client:
        checkpoint = find_asset(client, checkpoint_id, "checkpoint")
    if as_json:
        print_json(checkpoint)
        return
    metrics = [f"{name} {number(value)}" for name, value in (checkpoint["metrics"] or {}).items()]
    show_fields(
        [
            *asset_fields(checkpoint),
            ("run", checkpoint["runId"]),
            ("step", str(checkpoint["step"])),
            ("epoch", _epoch(checkpoint)),
            ("metrics", ", ".join(metrics)),
            ("place", _place(checkpoint) or None),
        ]
    )


@app.command("delete", help=say("help.checkpoints.delete"))
def delete(checkpoint_id: CheckpointId, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a checkpoint and give its space back."""
    delete_asset(checkpoint_id, "checkpoint", yes, as_json)


def _row(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    return (
        short_id(checkpoint["id"]),
        short_id(checkpoint["runId"]),
        str(checkpoint["step"]),
        _epoch(checkpoint),
        number((checkpoint["metrics"] or {}).get("accuracy")),
        _place(checkpoint),
        checkpoint["size"] or "—",
    )


def _epoch(checkpoint: dict[str, Any]) -> str:
    return "—" if checkpoint["epoch"] is None else f"{checkpoint['epoch']:.2f}"


def _place(checkpoint: dict[str, Any]) -> str:
    return say("separator").join(say(f"place.{name}") for name in ("best", "last") if checkpoint.get(name))
