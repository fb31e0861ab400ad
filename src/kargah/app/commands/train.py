"""`kargah train`: a run through the server, or, given a spec file, the training program alone with no server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kargah.app.client import Client
from kargah.app.commands.console import EXIT_FAILED, connected, err, fail, out, print_json, say
from kargah.runs.executor import PROGRAM, child_environment
from kargah.spec.control import read_exit
from kargah.spec.layout import RunDir, write_json
from kargah.spec.run_spec import RunSpec, SpecError


def train(
    spec: Annotated[Path | None, typer.Argument(help="a spec file: train it here, with no server")] = None,
    base: Annotated[str | None, typer.Option("--base", help="model or checkpoint to start from")] = None,
    dataset: Annotated[list[str] | None, typer.Option("--dataset", help="data set; may be repeated")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="teacher to distil from")] = None,
    name: Annotated[str | None, typer.Option("--name", help="name of the run")] = None,
    config: Annotated[list[str] | None, typer.Option("--set", help="a value of config, as epochs=3")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="with a spec: where the run is written")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not wait for the end")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON, for programs")] = False,
) -> None:
    """Train. Ctrl-C only stops watching a run of the server; the run goes on."""
    if spec is not None:
        _alone(spec, run_dir, as_json)
        return
    if base is None or not dataset:
        raise typer.BadParameter(say("trainNeeds"))
    body: dict[str, Any] = {"baseModel": base, "datasets": dataset, "config": _config(config or [])}
    body |= {key: value for key, value in (("teacherModel", teacher), ("name", name)) if value}
    with connected() as client:
        started = client.post("/api/training/start", body)
        run_id = started["runId"]
        if detach:
            final = started
        else:
            if not as_json:
                out.print(say("runStarted", id=run_id), markup=False)
            watch(client, run_id, quiet=as_json)
            final = client.get(f"/api/analysis/training/status/{run_id}", maxPoints=2)
    if as_json:
        print_json({key: value for key, value in final.items() if key not in ("history", "logs")})
    if final["status"] == "failed":
        fail(f"{final['message']} [{final['error']}]", EXIT_FAILED)
    if not as_json and not detach:
        out.print(say("runEnded", status=say(f"status.{final['status']}"), **_figures(final)), markup=False)


def watch(client: Client, run_id: str, *, quiet: bool = False) -> Iterator[dict[str, Any]] | None:
    """Follow a run to its end with a live bar."""
    events = client.stream(f"/api/training/stream/{run_id}")
    if quiet:
        for _ in events:
            pass
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=err) as bar:
        task = bar.add_task(say("status.queued"), total=None, figures="")
        shown: dict[str, Any] = {}
        for event in events:
            shown |= {
                key: event[key] for key in ("loss", "trainLoss", "valLoss", "accuracy") if event.get(key) is not None
            }
            changes: dict[str, Any] = {"figures": _line(shown)}
            if event.get("status"):
                changes["description"] = say(f"status.{event['status']}")
            if event.get("totalSteps"):
                changes["total"] = event["totalSteps"]
            elif bar.tasks[0].total is None and event["type"] == "metric":
                changes["total"] = client.get(f"/api/analysis/training/status/{run_id}", maxPoints=2)["totalSteps"]
            if event.get("step") is not None:
                changes["completed"] = event["step"]
            bar.update(task, **changes)
    return None


def _alone(spec_file: Path, run_dir: Path | None, as_json: bool) -> None:
    try:
        spec = RunSpec.from_json(json.loads(spec_file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        problem = f"{error.field}: {error.problem}" if isinstance(error, SpecError) else str(error)
        fail(say("badSpec", file=str(spec_file), problem=problem), 2)
    root = RunDir((run_dir or Path.cwd() / "runs" / spec.run_id).absolute())
    number = (root.attempt_numbers() or [0])[-1] + 1
    root.attempt(number).root.mkdir(parents=True, exist_ok=True)
    write_json(root.spec, spec.to_json())
    err.print(say("trainingIn", path=str(root.root)), markup=False)
    command = [sys.executable, "-m", PROGRAM, str(root.root), "--attempt", str(number)]
    done = subprocess.run(command, env=child_environment(), stdout=sys.stderr, check=False)
    ended = read_exit(root.attempt(number).exit)
    if as_json:
        print_json(
            {
                "runDir": str(root.root),
                "outcome": ended.outcome if ended else None,
                "error": ended.error if ended else None,
            }
        )
    elif ended is not None:
        out.print(say("aloneEnded", outcome=ended.outcome.value, step=ended.step), markup=False)
    raise typer.Exit(done.returncode)


def _config(pairs: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise typer.BadParameter(say("badPair", pair=pair), param_hint="--set")
        try:
            config[key] = json.loads(text)
        except ValueError:
            config[key] = text
    return config


def _figures(row: dict[str, Any]) -> dict[str, str]:
    return {name: "—" if row[name] is None else f"{row[name]:.4f}" for name in ("trainLoss", "valLoss", "accuracy")}


def _line(shown: dict[str, Any]) -> str:
    loss = shown.get("loss", shown.get("trainLoss"))
    parts = [("loss", loss), ("val", shown.get("valLoss")), ("acc", shown.get("accuracy"))]
    return "  ".join(f"{name} {value:.4f}" for name, value in parts if value is not None)
