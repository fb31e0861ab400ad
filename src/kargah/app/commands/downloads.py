"""`kargah downloads`: what is on its way or did not arrive, and steering it."""

from typing import Annotated, Any

import typer

from kargah.app.commands import completing
from kargah.app.commands.console import AsJson, connected, figure, print_json, say, short_id, show_table, tell
from kargah.app.commands.download import phase_of
from kargah.app.commands.groups import ListingGroup
from kargah.text.sizes import human_size

app = typer.Typer(cls=ListingGroup)

AssetId = Annotated[
    str,
    typer.Argument(metavar="ID", help=say("help.argument.id"), autocompletion=completing.assets, show_default=False),
]
IsDataset = Annotated[bool, typer.Option("--dataset", help=say("help.download.dataset"))]


@app.command("list", help=say("help.downloads.list"))
def list_downloads(as_json: AsJson = False) -> None:
    """Downloads and uploads that are on their way or did not arrive."""
    with connected() as client:
        found = client.get("/api/downloads")
    if as_json:
        print_json(found)
        return
    rows = [
        (short_id(one["id"]), say(f"kind.{one['kind']}"), _state(one), f"{one['progress']}%", _bytes(one))
        for one in found
    ]
    show_table(("id", "kind", "status", "progress", "size"), rows, fold=("status",))


@app.command("pause", help=say("help.downloads.pause"))
def pause(asset_id: AssetId, dataset: IsDataset = False, as_json: AsJson = False) -> None:
    """Let go of the network and keep the bytes."""
    _steer("pause", asset_id, dataset, as_json)


@app.command("resume", help=say("help.downloads.resume"))
def resume(asset_id: AssetId, dataset: IsDataset = False, as_json: AsJson = False) -> None:
    """Go on with a paused download."""
    _steer("resume", asset_id, dataset, as_json)


@app.command("retry", help=say("help.downloads.retry"))
def retry(asset_id: AssetId, dataset: IsDataset = False, as_json: AsJson = False) -> None:
    """Ask now instead of waiting; begin again what ended in an error."""
    _steer("retry", asset_id, dataset, as_json)


@app.command("cancel", help=say("help.downloads.cancel"))
def cancel(
    asset_id: AssetId,
    dataset: IsDataset = False,
    discard: Annotated[bool, typer.Option("--discard", help=say("help.downloads.discard"))] = False,
    as_json: AsJson = False,
) -> None:
    """End a download or an upload."""
    _steer("cancel", asset_id, dataset, as_json, **({"discard": True} if discard else {}))


def _steer(step: str, asset_id: str, dataset: bool, as_json: bool, **more: Any) -> None:
    kind = "dataset" if dataset else "model"
    with connected() as client:
        answer = client.post(f"/api/{kind}s/download/{step}", {f"{kind}Id": asset_id, **more})
    if as_json:
        print_json(answer)
    elif answer.get("freedBytes") is not None:
        tell(say("downloads.discarded", id=asset_id, size=figure(human_size(answer["freedBytes"]))))
    else:
        tell(say(f"downloads.{step}", id=asset_id))


def _state(one: dict[str, Any]) -> str:
    return f"{say('phase.error')} [{one['error']}]" if one.get("error") else phase_of(one)


def _bytes(one: dict[str, Any]) -> str:
    total = one["totalBytes"]
    came = human_size(one["bytesDownloaded"]) or "—"
    return f"{came} / {human_size(total)}" if total else came
