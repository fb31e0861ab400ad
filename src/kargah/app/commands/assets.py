"""`kargah assets`: everything held here, one of it in full, and deleting it."""

from typing import Annotated, Any, Literal

import typer

from kargah.app.commands import completing
from kargah.app.commands.console import AsJson, connected, print_json, say, short_id, show_fields, show_table
from kargah.app.commands.groups import ListingGroup
from kargah.app.commands.listing import every, find_asset
from kargah.app.commands.removal import Yes
from kargah.app.commands.removal import delete as delete_asset

app = typer.Typer(cls=ListingGroup)

Kind = Annotated[Literal["model", "dataset", "checkpoint"] | None, typer.Option("--kind", help=say("help.kind"))]
AssetId = Annotated[
    str,
    typer.Argument(metavar="ID", help=say("help.argument.id"), autocompletion=completing.assets, show_default=False),
]


@app.command("list", help=say("help.assets.list"))
def list_assets(
    kind: Kind = None,
    q: Annotated[str | None, typer.Option("--search", "-q", help=say("help.search"))] = None,
    as_json: AsJson = False,
) -> None:
    """Everything held here, newest first."""
    with connected() as client:
        held = every(client, "/api/assets", kind=kind, q=q)
    if as_json:
        print_json(held)
        return
    rows = [
        (
            short_id(asset["id"]),
            say(f"kind.{asset['kind']}"),
            asset_state(asset),
            asset["size"] or "—",
            "" if asset["name"] == asset["id"] else asset["name"],
        )
        for asset in held
    ]
    show_table(("id", "kind", "status", "size", "name"), rows, fold=("name",))


@app.command("show", help=say("help.assets.show"))
def show(asset_id: AssetId, kind: Kind = None, as_json: AsJson = False) -> None:
    """One model, data set or checkpoint in full."""
    with connected() as client:
        asset = find_asset(client, asset_id, kind)
    if as_json:
        print_json(asset)
    else:
        show_fields(asset_fields(asset))


@app.command("delete", help=say("help.assets.delete"))
def delete(asset_id: AssetId, kind: Kind = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete something and give its space back."""
    delete_asset(asset_id, kind, yes, as_json)


def asset_state(asset: dict[str, Any]) -> str:
    """The state of an asset, with how far it is or why it did not come."""
    state = say(f"status.{asset['status']}")
    if asset["status"] == "downloading":
        return f"{state} {asset['progress']}%"
    return f"{state} [{asset['error']}]" if asset.get("error") else state


def asset_fields(asset: dict[str, Any]) -> list[tuple[str, str | None]]:
    """What is known of an asset."""
    return [
        ("id", asset["id"]),
        ("name", asset["name"]),
        ("kind", say(f"kind.{asset['kind']}")),
        ("status", asset_state(asset)),
        ("size", asset["size"] and f"{asset['size']} ({asset['sizeBytes']} B)"),
        ("source", asset["source"]),
        ("description", asset.get("description")),
        ("licence", asset.get("licence")),
        ("tasks", ", ".join(asset.get("tasks") or [])),
        ("languages", ", ".join(asset.get("languages") or [])),
        ("parameters", f"{asset['parameters']:,}" if asset.get("parameters") else None),
        ("revision", asset.get("revision")),
        ("created", asset.get("createdAt")),
        ("downloaded", asset["downloadedAt"]),
    ]
