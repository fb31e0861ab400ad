"""`kargah runs`: the history of runs, one run in full, and stopping one."""

from typing import Annotated, Any

import typer
from rich.table import Table

from kargah.app.commands.console import connected, out, print_json, say

app = typer.Typer(no_args_is_help=False, invoke_without_command=True, help="The history of runs; show or stop one.")

AsJson = Annotated[bool, typer.Option("--json", help="as JSON, for programs")]


@app.callback()
def list_runs(
    context: typer.Context,
    status: Annotated[str | None, typer.Option("--status", help="only runs in this state")] = None,
    q: Annotated[str | None, typer.Option("--search", "-q", help="only runs with this text")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    if context.invoked_subcommand is not None:
        return
    with connected() as client:
        rows: list[dict[str, Any]] = client.get("/api/analysis/training/jobs", status=status, q=q)
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "status", "step", "loss", "valLoss", "accuracy", "created"):
        table.add_column(say(f"column.{column}"), overflow="fold", no_wrap=column not in ("name", "description"))
    for row in rows:
        table.add_row(
            row["runId"],
            row["name"],
            say(f"status.{row['status']}"),
            f"{row['step']}/{row['totalSteps'] or '—'}",
            _number(row["trainLoss"]),
            _number(row["valLoss"]),
            _number(row["accuracy"]),
            row["createdAt"][:10],
        )
    out.print(table)


@app.command("show")
def show(run_id: Annotated[str, typer.Argument(help="run or job id")], as_json: AsJson = False) -> None:
    """One run with its values, the last of its curve and of its log."""
    with connected() as client:
        run = client.get(f"/api/training/status/{run_id}")
    if as_json:
        print_json(run)
        return
    for name in (
        "runId",
        "name",
        "status",
        "baseModel",
        "teacherModel",
        "step",
        "totalSteps",
        "trainLoss",
        "valLoss",
        "accuracy",
    ):
        out.print(f"{name:>14}  {run[name]}", markup=False)
    for row in run["history"][-10:]:
        out.print(f"{row['step']:>8}  loss {_number(row['loss'])}  val {_number(row['valLoss'])}", markup=False)
    for line in run["logs"][-10:]:
        out.print(f"{line['timestamp']}  {line['level']:<7} {line['message']}", markup=False)


@app.command("stop")
def stop(run_id: Annotated[str, typer.Argument(help="run or job id")], as_json: AsJson = False) -> None:
    """End a run; if it trains, with a checkpoint."""
    _wish("stop", run_id, as_json)


@app.command("pause")
def pause(run_id: Annotated[str, typer.Argument(help="run or job id")], as_json: AsJson = False) -> None:
    """Let a run write a checkpoint and leave the machine."""
    _wish("pause", run_id, as_json)


@app.command("resume")
def resume(run_id: Annotated[str, typer.Argument(help="run or job id")], as_json: AsJson = False) -> None:
    """Put a paused run into the queue again."""
    _wish("resume", run_id, as_json)


def _wish(verb: str, run_id: str, as_json: bool) -> None:
    with connected() as client:
        state = client.post(f"/api/training/{verb}/{run_id}")
    if as_json:
        print_json(state)
    else:
        out.print(say(f"status.{state['status']}"), markup=False)


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"
