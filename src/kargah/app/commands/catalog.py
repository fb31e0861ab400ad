"""`kargah catalog`: what is approved, whether it still holds, and requests for what is not approved yet."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from kargah.app.commands import later
from kargah.app.commands.console import (
    EXIT_USED_WRONGLY,
    AsJson,
    connected,
    fail,
    language,
    print_json,
    say,
    short_id,
    show_rows,
    show_table,
    tell,
)
from kargah.app.commands.listing import every
from kargah.text.messages import translate

if TYPE_CHECKING:
    from kargah.client import Client

REQUESTS = "/api/catalog/requests"
_PREFIX = re.compile("[0-9a-f]{4,31}")
_WITH_VALUE = ("-q", "--search")


def _told(key: str, /, **params: Any) -> str:
    return translate(f"approvals.{key}", language(), **params)


class CatalogGroup(TyperGroup):
    """Lists models when no verb is named, and takes options on either side of the verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments with the verb in front."""
        if not ctx.resilient_parsing and not {"--help", "-h"} & set(args[:1]):
            place = _verb_place(args)
            args = ["models", *args] if place is None else [args[place], *args[:place], *args[place + 1 :]]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=CatalogGroup)
Search = Annotated[str | None, typer.Option("--search", "-q", help=say("help.search"))]
Dataset = Annotated[bool, typer.Option("--dataset", help=say("help.download.dataset"))]


@app.command("models", help=_told("help.models"))
def list_models(q: Search = None, as_json: AsJson = False) -> None:
    """Approved models, and what is here already."""
    _list("models", q, as_json)


@app.command("datasets", help=_told("help.datasets"))
def list_datasets(q: Search = None, as_json: AsJson = False) -> None:
    """Approved data sets, and what is here already."""
    _list("datasets", q, as_json)


later.add(app, "check", _told("help.check"), "catalog_check.check")
later.add(app, "schema", _told("help.schema"), "catalog_check.schema")


@app.command("request", help=_told("help.request"))
def request(
    asset_id: Annotated[str, typer.Argument(metavar="ID", help=_told("help.request.id"), show_default=False)],
    dataset: Dataset = False,
    reason: Annotated[str | None, typer.Option("--reason", help=_told("help.request.reason"))] = None,
    as_json: AsJson = False,
) -> None:
    """Ask that something be approved."""
    body = {"id": asset_id, "kind": "dataset" if dataset else "model", "reason": reason}
    with connected() as client:
        asked = client.post(REQUESTS, {name: value for name, value in body.items() if value is not None})
    if as_json:
        print_json(asked)
    elif asked["numAsked"] > 1:
        tell(_told("askedAgain", id=asset_id, requestId=asked["requestId"], num=asked["numAsked"]))
    else:
        tell(_told("asked", id=asset_id, requestId=asked["requestId"]))


@app.command("requests", help=_told("help.requests"))
def list_requests(
    status: Annotated[
        Literal["open", "approved", "declined"] | None, typer.Option("--status", help=_told("help.requests.status"))
    ] = None,
    as_toml: Annotated[bool, typer.Option("--toml", help=_told("help.requests.toml"))] = False,
    as_json: AsJson = False,
) -> None:
    """Requests, newest first; as TOML, blocks for the site's file, oldest first."""
    if as_toml and as_json:
        raise typer.BadParameter("--toml | --json", param_hint="--toml")
    with connected() as client:
        asked = every(client, REQUESTS, status=status or ("open" if as_toml else None))
        if as_json:
            print_json(asked)
        elif as_toml:
            # Only here: drafts alone ask the hubs.
            from kargah.app.commands.catalog_drafts import print_drafts

            print_drafts(asked[::-1])
        elif not asked:
            tell(_told("none"))
        else:
            _show_requests(asked)


@app.command("decline", help=_told("help.decline"))
def decline(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help=_told("help.decline.id"), show_default=False)],
    note: Annotated[str | None, typer.Option("--note", help=_told("help.decline.note"))] = None,
    as_json: AsJson = False,
) -> None:
    """Decline an open request."""
    with connected() as client:
        place = f"{REQUESTS}/{_find_request(client, request_id)}/decline"
        declined = client.post(place, {} if note is None else {"note": note})
    if as_json:
        print_json(declined)
    else:
        tell(_told("declined", id=declined["id"]))


def _verb_place(args: list[str]) -> int | None:
    """Where the first word stands that is neither an option nor the value of one."""
    place = 0
    while place < len(args):
        if not args[place].startswith("-"):
            return place
        place += 2 if args[place] in _WITH_VALUE else 1
    return None


def _list(kind: str, q: str | None, as_json: bool) -> None:
    with connected() as client:
        entries: list[dict[str, Any]] = client.get(f"/api/catalog/{kind}", q=q)
    if as_json:
        print_json(entries)
        return
    rows = [
        (
            entry["id"],
            say(f"status.{entry['status']}"),
            entry["size"] or "—",
            entry["licence"] or "—",
            entry["description"] or "",
        )
        for entry in entries
    ]
    show_table(("id", "status", "size", "licence", "description"), rows, fold=("description",))


def _show_requests(asked: list[dict[str, Any]]) -> None:
    headings = [
        _told("column.request"),
        say("column.id"),
        _told("column.kind"),
        say("column.status"),
        _told("column.asked"),
        say("column.created"),
        _told("column.reason"),
    ]
    rows = [
        (
            short_id(one["requestId"]),
            one["id"],
            _told(f"kind.{one['kind']}"),
            _told(f"status.{one['status']}"),
            str(one["numAsked"]),
            one["createdAt"][:10],
            one["reason"] or "",
        )
        for one in asked
    ]
    show_rows(headings, rows, fold=[6])


def _find_request(client: "Client", given: str) -> str:
    """The request under an id or under its first digits; what names none is handed on, for the server to refuse."""
    if not _PREFIX.fullmatch(given.lower()):
        return given
    found = [one for one in every(client, REQUESTS) if one["requestId"].startswith(given.lower())]
    if len(found) > 1:
        lines = [f"{one['requestId']}  {one['id']}" for one in found]
        fail("\n  ".join([say("ambiguous", id=given), *lines]), EXIT_USED_WRONGLY)
    return str(found[0]["requestId"]) if found else given
