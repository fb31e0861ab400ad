"""`kargah runs clone`: a new run as another one was asked for, with changes."""

from typing import Annotated, Any

import typer

from kargah.app.commands import completing
from kargah.app.commands.console import AsJson, connected, print_json, say, tell
from kargah.app.commands.hyperparameters import config_of
from kargah.app.commands.listing import find_run


def clone(
    run_id: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help=say("help.argument.run"), autocompletion=completing.runs, show_default=False
        ),
    ],
    config: Annotated[list[str] | None, typer.Option("--set", help=say("help.runs.cloneSet"))] = None,
    base: Annotated[
        str | None, typer.Option("--base", help=say("help.runs.cloneBase"), autocompletion=completing.models)
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help=say("help.runs.cloneDataset"), autocompletion=completing.datasets),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help=say("help.runs.cloneName"))] = None,
    as_json: AsJson = False,
) -> None:
    """Put a run into the queue that is planned afresh from what another one was asked for."""
    given: dict[str, Any] = {"baseModel": base, "datasets": dataset or None, "name": name}
    body = {key: value for key, value in given.items() if value is not None}
    if config:
        body["config"] = config_of(config)
    with connected() as client:
        started = client.post(f"/api/training/clone/{find_run(client, run_id)}", body)
    if as_json:
        print_json(started)
    else:
        tell(say("runStarted", id=started["runId"]))
