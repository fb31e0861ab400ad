"""`kargah data`: the data sets held, one of them in full, its rows, uploading and deleting."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kargah.app.commands import completing
from kargah.app.commands.assets import asset_fields, asset_state
from kargah.app.commands.console import (
    EXIT_FAILED,
    AsJson,
    connected,
    fail,
    out,
    print_json,
    say,
    short_id,
    show_fields,
    show_rows,
    show_table,
    tell,
)
from kargah.app.commands.download import last_event, watch
from kargah.app.commands.groups import ListingGroup
from kargah.app.commands.listing import as_path, find_asset
from kargah.app.commands.removal import Yes
from kargah.app.commands.removal import delete as delete_asset
from kargah.app.commands.uploading import Parcel, checked_files, pairs, send

SHOWN_LABELS = 50

app = typer.Typer(cls=ListingGroup)

DatasetId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help=say("help.argument.dataset"), autocompletion=completing.datasets, show_default=False
    ),
]


@app.command("list", help=say("help.data.list"))
def list_datasets(
    q: Annotated[str | None, typer.Option("--search", "-q", help=say("help.search"))] = None,
    as_json: AsJson = False,
) -> None:
    """The data sets held, newest first."""
    with connected() as client:
        held: list[dict[str, Any]] = client.get("/api/datasets", q=q)
    if as_json:
        print_json(held)
        return
    rows = [(short_id(one["id"]), asset_state(one), one["size"] or "—", one["source"], one["name"]) for one in held]
    show_table(("id", "status", "size", "source", "name"), rows, fold=("name",))


@app.command("upload", help=say("help.data.upload"))
def upload(
    name: Annotated[str, typer.Option("--name", help=say("help.data.name"))],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help=say("help.data.files"), show_default=False)
    ] = None,
    train: Annotated[list[Path] | None, typer.Option("--train", help=say("help.data.train"))] = None,
    validation: Annotated[list[Path] | None, typer.Option("--validation", help=say("help.data.validation"))] = None,
    test: Annotated[list[Path] | None, typer.Option("--test", help=say("help.data.test"))] = None,
    column: Annotated[list[str] | None, typer.Option("--column", help=say("help.data.column"))] = None,
    task: Annotated[str | None, typer.Option("--task", help=say("help.data.task"))] = None,
    as_json: AsJson = False,
) -> None:
    """Upload files as a data set and wait until it is ready."""
    parcel = Parcel(
        name=name,
        files=checked_files({"": files, "train": train, "validation": validation, "test": test}),
        columns=pairs(column or [], "--column"),
        task=task,
    )
    with connected("importGoesOn") as client:
        dataset_id = send(client, parcel)["datasetId"]
        events = client.stream("/api/datasets/download/progress", datasetId=dataset_id)
        last = last_event(events) if as_json else watch(events)
    if as_json:
        print_json(last)
    if last["status"] == "error":
        fail(f"{last['message']} [{last['error']}]", EXIT_FAILED)
    if not as_json:
        tell(say("uploaded", id=dataset_id))


@app.command("show", help=say("help.data.show"))
def show(dataset_id: DatasetId, as_json: AsJson = False) -> None:
    """One data set: columns, splits, mapping, and what was found in it."""
    with connected() as client:
        asset = find_asset(client, dataset_id, "dataset")
        found = client.get(f"/api/datasets/{as_path(asset['id'])}")
    if as_json:
        print_json(found)
        return
    show_fields(
        [
            *asset_fields(found),
            ("version", found["version"]),
            ("task", found["task"]),
            ("mapping", ", ".join(f"{role} = {column}" for role, column in found["mapping"].items())),
            ("labels", _labels(found["labels"])),
            ("splits", ", ".join(f"{split['name']} {split['numRows']}" for split in found["splits"])),
        ]
    )
    tell("")
    show_table(("column", "type", "empty", "unique", "examples"), map(_column, found["columns"]), fold=("examples",))
    for finding in found["findings"]:
        tell(f"\n{finding['code']}: {finding['message']} {finding['remedy']}")


@app.command("rows", help=say("help.data.rows"))
def rows(
    dataset_id: DatasetId,
    split: Annotated[str | None, typer.Option("--split", help=say("help.data.split"))] = None,
    offset: Annotated[int, typer.Option("--offset", min=0, help=say("help.data.offset"))] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help=say("help.limit"))] = 20,
    q: Annotated[str | None, typer.Option("--search", "-q", help=say("help.search"))] = None,
    as_json: AsJson = False,
) -> None:
    """Rows of a data set, in the order of the file."""
    with connected() as client:
        asset = find_asset(client, dataset_id, "dataset")
        place = f"/api/datasets/{as_path(asset['id'])}/rows"
        part = client.get(place, split=split, offset=offset, limit=limit, q=q)
    if as_json:
        print_json(part)
        return
    if part["rows"]:
        headings = list(part["rows"][0])
        lines = [[_cell(row.get(name)) for name in headings] for row in part["rows"]]
        show_rows(headings, lines, fold=range(len(headings)))
    if out.is_terminal:
        shown = len(part["rows"])
        tell(say("rowsShown", shown=shown, offset=offset, total=part["total"], split=part["split"]), to_errors=True)


@app.command("delete", help=say("help.data.delete"))
def delete(dataset_id: DatasetId, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a data set and give its space back."""
    delete_asset(dataset_id, "dataset", yes, as_json)


def _labels(labels: list[str]) -> str:
    more = [f"… ({len(labels)})"] if len(labels) > SHOWN_LABELS else []
    return say("separator").join([*labels[:SHOWN_LABELS], *more])


def _column(column: dict[str, Any]) -> tuple[str, ...]:
    unique = column["numUnique"]
    examples = " | ".join(_cell(value) for value in column["examples"])
    return (
        column["name"],
        column["type"],
        str(column["numNulls"]),
        f"> {column['numUniqueOver']}" if unique is None else str(unique),
        examples,
    )


def _cell(value: Any) -> str:
    return "—" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
