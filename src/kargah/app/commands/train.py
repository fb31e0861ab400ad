"""`kargah train`: a run through the server, or, given a spec file, the training program alone with no server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

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
from kargah.app.commands.hyperparameters import config_of
from kargah.app.commands.training_alone import train_alone

if TYPE_CHECKING:
    from kargah.client import Client


def train(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help=say("help.train.spec"), show_default=False)
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help=say("help.train.base"), autocompletion=completing.models)
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help=say("help.train.dataset"), autocompletion=completing.datasets)
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help=say("help.train.teacher"), autocompletion=completing.models)
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help=say("help.train.name"))] = None,
    config: Annotated[list[str] | None, typer.Option("--set", help=say("help.train.set"))] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help=say("help.train.runDir"))] = None,
    detach: Annotated[bool, typer.Option("--detach", help=say("help.train.detach"))] = False,
    as_json: AsJson = False,
) -> None:
    """Train. Ctrl-C only stops watching a run of the server; the run goes on."""
    if spec is not None:
        train_alone(spec, run_dir, as_json)
    if base is None or not dataset:
        raise typer.BadParameter(say("trainNeeds"))
    body: dict[str, Any] = {"baseModel": base, "datasets": dataset, "config": config_of(config or [])}
    body |= {key: value for key, value in (("teacherModel", teacher), ("name", name)) if value}
    with connected("watchingEnded") as client:
        started = client.post("/api/training/start", body)
        run_id = started["runId"]
        if detach:
            final = started
        else:
            if not as_json:
                tell(say("runStarted", id=run_id))
            watch(client, run_id)
            final = client.get(f"/api/analysis/training/status/{run_id}", maxPoints=2)
    if as_json:
        print_json({key: value for key, value in final.items() if key not in ("history", "logs")})
    if final["status"] == "failed":
        fail(f"{final['message']} [{final['error']}]", EXIT_FAILED)
    if not as_json:
        figures = {name: figure(final.get(name)) for name in ("trainLoss", "valLoss", "accuracy")}
        tell(say("runQueued", id=run_id) if detach else say("runEnded", status=_state(final["status"]), **figures))


def watch(client: "Client", run_id: str) -> None:
    """Follow a run to its end, with a live bar where there is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with progress_bar(*columns, TextColumn("{task.fields[figures]}")) as bar:
        task = bar.add_task(isolated(_state("queued")), total=None, figures="")
        shown: dict[str, Any] = {}
        total: int | None = None
        for event in client.stream(f"/api/training/stream/{run_id}"):
            shown |= {
                key: event[key] for key in ("loss", "trainLoss", "valLoss", "accuracy") if event.get(key) is not None
            }
            changes: dict[str, Any] = {"figures": _line(shown)}
            if event.get("status"):
                changes["description"] = isolated(_state(event["status"]))
            total = event.get("totalSteps") or total
            if total is None and event["type"] == "metric":
                total = client.get(f"/api/analysis/training/status/{run_id}", maxPoints=2)["totalSteps"]
            if event.get("step") is not None:
                changes["completed"] = event["step"]
            bar.update(task, total=total, **changes)


def _state(status: str) -> str:
    return say(f"status.{status}")


def _line(shown: dict[str, Any]) -> str:
    loss = shown.get("loss", shown.get("trainLoss"))
    parts = [("loss", loss), ("val", shown.get("valLoss")), ("acc", shown.get("accuracy"))]
    return "  ".join(f"{name} {value:.4f}" for name, value in parts if value is not None)
