"""`kargah hub`: the hub's endpoints in their order, and a test of each from this machine. It needs no server."""

from typing import Annotated, Any

import typer

from kargah.app.commands.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_USED_WRONGLY,
    AsJson,
    fail,
    language,
    print_json,
    show_rows,
    tell,
)
from kargah.app.commands.groups import ListingGroup
from kargah.assets.catalog import load_catalog
from kargah.ground.errors import KargahError, Offline, ValidationFailed
from kargah.ground.settings import load_settings
from kargah.hub.endpoint_outcomes import described, outcomes, repo_ids_of
from kargah.text.messages import translate
from kargah.text.sizes import human_size


def _told(key: str, /, **params: Any) -> str:
    return translate(f"mirrors.{key}", language(), **params)


app = typer.Typer(cls=ListingGroup)


@app.command("list", help=_told("help.list"))
def list_endpoints(as_json: AsJson = False) -> None:
    """The endpoints in the order they are tried."""
    try:
        settings = load_settings()
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    rows = described(settings)
    if as_json:
        print_json(rows)
        return
    headings = [_told(f"column.{name}") for name in ("number", "url", "token")]
    shown = [(str(row["number"]), row["url"], _told("tokenSet") if row["hasToken"] else "—") for row in rows]
    show_rows(headings, shown, fold=[1])
    if settings.offline:
        tell(_told("offline"))


@app.command("test", help=_told("help.test"))
def try_endpoints(
    url: Annotated[str | None, typer.Argument(metavar="[URL]", help=_told("help.url"), show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Test the endpoints. Exit code 1 when some fail, 4 when all do."""
    try:
        settings = load_settings()
        rows = outcomes(settings, repo_ids_of(load_catalog(settings.catalog)), language(), url)
    except Offline as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_REFUSED)
    except ValidationFailed:
        fail(translate("problem.endpointNotConfigured", language()), EXIT_USED_WRONGLY)
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    except KeyboardInterrupt:
        fail(_told("interrupted"), EXIT_INTERRUPTED)
    if as_json:
        print_json(rows)
    else:
        headings = [_told(f"column.{name}") for name in ("number", "url", "latency", "speed", "found")]
        show_rows(headings, [_row(row) for row in rows], fold=[1, 4])
    failed = [row for row in rows if not row["ok"]]
    if failed:
        raise typer.Exit(EXIT_UNREACHABLE if len(failed) == len(rows) else EXIT_FAILED)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    latency, speed = row["latencyMs"], row["bytesPerSecond"]
    return (
        str(row["number"]),
        row["url"],
        "—" if latency is None else f"{latency:.0f} ms",
        "—" if speed is None else f"{human_size(speed)}/s",
        row["message"],
    )
