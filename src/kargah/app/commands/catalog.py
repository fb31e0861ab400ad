"""`kargah catalog`: what is approved."""

from typing import Annotated, Any

import typer
from rich.table import Table

from kargah.app.commands.console import connected, out, print_json, say


def catalog(
    kind: Annotated[str, typer.Argument(help="models or datasets")] = "models",
    q: Annotated[str | None, typer.Option("--search", "-q", help="only entries with this text")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON, for programs")] = False,
) -> None:
    """List approved models or data sets, and what is here already."""
    if kind not in ("models", "datasets"):
        raise typer.BadParameter("models | datasets", param_hint="kind")
    with connected() as client:
        entries: list[dict[str, Any]] = client.get(f"/api/catalog/{kind}", q=q)
    if as_json:
        print_json(entries)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "status", "size", "licence", "description"):
        table.add_column(say(f"column.{column}"), overflow="fold", no_wrap=column not in ("name", "description"))
    for entry in entries:
        table.add_row(
            entry["id"],
            say(f"status.{entry['status']}"),
            entry["size"] or "—",
            entry["licence"] or "—",
            entry["description"] or "",
        )
    out.print(table)
