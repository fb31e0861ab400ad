"""`kargah checkpoints`: the checkpoints that runs wrote; downloading, restoring, pinning, pruning and deleting them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn

from kargah.app.commands import completing
from kargah.app.commands.assets import asset_fields
from kargah.app.commands.console import (
    AsJson,
    connected,
    figure,
    number,
    print_json,
    progress_bar,
    say,
    short_id,
    show_fields,
    show_table,
    tell,
)
from kargah.app.commands.groups import ListingGroup
from kargah.app.commands.listing import find_asset, find_run
from kargah.app.commands.removal import Yes, confirm
from kargah.app.commands.removal import delete as delete_asset
from kargah.client import Client, Pruned
from kargah.text.sizes import human_size

app = typer.Typer(cls=ListingGroup, help=say("help.checkpoints"))

CheckpointId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help=say("help.argument.checkpoint"), autocompletion=completing.checkpoints, show_default=False
    ),
]

RunArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help=say("help.argument.run"), autocompletion=completing.runs, show_default=False),
]


@app.command("list", help=say("help.checkpoints.list"))
def list_checkpoints(
    run_id: RunArgument = None,
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
        checkpoint = client.get(f"/api/training/checkpoints/{_id(client, checkpoint_id)}")
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
            ("base", _model(checkpoint["baseModel"])),
            ("teacher", _model(checkpoint["teacherModel"])),
            ("datasets", say("separator").join(one["id"] for one in checkpoint["datasets"])),
            ("codeVersion", checkpoint["codeVersion"]),
            ("usedBy", say("separator").join(checkpoint["holders"])),
            (
                "descendants",
                say("separator").join(f"{one['name']} ({one['runId']})" for one in checkpoint["descendants"]),
            ),
        ]
    )


@app.command("download", help=say("help.checkpoints.download"))
def download(
    checkpoint_id: CheckpointId,
    to: Annotated[Path, typer.Option("--to", file_okay=False, exists=True, help=say("help.checkpoints.to"))] = Path(),
    training: Annotated[bool, typer.Option("--training", help=say("help.checkpoints.training"))] = False,
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint as a zip into a folder."""
    with connected() as client, progress_bar(BarColumn(), DownloadColumn(), TransferSpeedColumn()) as bar:
        task = bar.add_task("", total=None)
        place = client.checkpoints.download(
            _id(client, checkpoint_id),
            to=to,
            training=training,
            on_progress=lambda here, total: bar.update(task, completed=here, total=total),
        )
    if as_json:
        print_json({"path": str(place), "sizeBytes": place.stat().st_size})
    else:
        tell(say("checkpointDownloaded", path=place))


@app.command("restore", help=say("help.checkpoints.restore"))
def restore(
    checkpoint_id: CheckpointId,
    name: Annotated[str | None, typer.Option("--name", help=say("help.checkpoints.restoreName"))] = None,
    as_json: AsJson = False,
) -> None:
    """A new run that goes on from a checkpoint exactly as its own did."""
    with connected() as client:
        started = client.checkpoints.restore(_id(client, checkpoint_id), name=name)
    if as_json:
        print_json(started.wire())
    else:
        tell(say("runStarted", id=started.run_id))


@app.command("pin", help=say("help.checkpoints.pin"))
def pin(checkpoint_id: CheckpointId, as_json: AsJson = False) -> None:
    """Keep a checkpoint whatever the limits say."""
    _pin(checkpoint_id, True, as_json)


@app.command("unpin", help=say("help.checkpoints.unpin"))
def unpin(checkpoint_id: CheckpointId, as_json: AsJson = False) -> None:
    """Let the limits decide about a checkpoint again."""
    _pin(checkpoint_id, False, as_json)


@app.command("prune", help=say("help.checkpoints.prune"))
def prune(
    run_id: RunArgument = None,
    keep_last: Annotated[
        int, typer.Option("--keep-last", min=0, max=1_000_000, help=say("help.checkpoints.keepLast"))
    ] = 1,
    keep_best: Annotated[
        bool, typer.Option("--keep-best/--no-keep-best", help=say("help.checkpoints.keepBest"))
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=say("help.checkpoints.dryRun"))] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove checkpoints by a policy; asks first, with what would go."""
    with connected() as client:
        run = find_run(client, run_id) if run_id else None
        done = client.checkpoints.prune(run, keep_last=keep_last, keep_best=keep_best, dry_run=True)
        if done.removed and not dry_run:
            if not yes:
                confirm(say("askPrune", **_figures(done)))
            done = client.checkpoints.prune(run, keep_last=keep_last, keep_best=keep_best)
    if as_json:
        print_json(done.wire())
    elif not done.removed:
        tell(say("nothingToPrune", kept=done.kept))
    else:
        rows = [
            (short_id(one.checkpoint_id), short_id(one.run_id), str(one.step), human_size(one.size_bytes) or "—")
            for one in done.removed
        ]
        show_table(("id", "run", "step", "size"), rows)
        tell(say("wouldPrune" if dry_run else "pruned", kept=done.kept, **_figures(done)))


@app.command("delete", help=say("help.checkpoints.delete"))
def delete(checkpoint_id: CheckpointId, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a checkpoint and give its space back."""
    delete_asset(checkpoint_id, "checkpoint", yes, as_json)


def _id(client: Client, given: str) -> str:
    return str(find_asset(client, given, "checkpoint")["id"])


def _pin(given: str, pinned: bool, as_json: bool) -> None:
    with connected() as client:
        asset = client.post(f"/api/training/checkpoints/{_id(client, given)}/pin", {"pinned": pinned})
    if as_json:
        print_json(asset)
    else:
        tell(say("checkpointPinned" if pinned else "checkpointUnpinned", id=asset["id"]))


def _figures(done: Pruned) -> dict[str, Any]:
    return {"removed": len(done.removed), "size": figure(human_size(done.freed_bytes))}


def _model(model: dict[str, Any] | None) -> str | None:
    return None if model is None else f"{model['id']} ({model['revision']})" if model["revision"] else model["id"]


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
    return say("separator").join(say(f"place.{name}") for name in ("best", "last", "pinned") if checkpoint.get(name))
