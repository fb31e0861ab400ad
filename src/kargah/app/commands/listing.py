"""Long lists of the server read to their end, and things found by the first digits of their ids."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kargah.app.commands.console import EXIT_REFUSED, EXIT_USED_WRONGLY, fail, language, say
from kargah.assets.errors import AssetNotFound

if TYPE_CHECKING:
    from kargah.client import Client

PAGE_ROWS = 1000
JOBS = "/api/analysis/training/jobs"
_PREFIX = re.compile("[0-9a-f]{4,31}")


def every(client: "Client", path: str, limit: int | None = None, **params: Any) -> list[dict[str, Any]]:
    """Rows of a paged list: all of them, or the first `limit`. Raises `ApiError`, `ServerUnreachable`."""
    rows: list[dict[str, Any]] = []
    asked: dict[str, Any] = {name: value for name, value in params.items() if value is not None}
    while True:
        size = PAGE_ROWS if limit is None else min(PAGE_ROWS, limit - len(rows))
        answer = client.answer("GET", path, params={**asked, "limit": size})
        rows.extend(answer["data"])
        following = answer["page"]["next"]
        if following is None or (limit is not None and len(rows) >= limit):
            return rows
        asked["cursor"] = following


def find_run(client: "Client", given: str) -> str:
    """The run that `given` names, ready for a path: an id, a job's id, or the first four or more digits of either.

    What names no run is handed on, for the server to refuse. Ends the command when several runs begin so.
    """
    prefix = given.lower()
    if not _PREFIX.fullmatch(prefix):
        return as_path(given)
    found = [run for run in every(client, JOBS) if run["runId"].startswith(prefix) or run["jobId"].startswith(prefix)]
    _refuse_several(given, found, lambda run: f"{run['runId']}  {run['name']}")
    return str(found[0]["runId"]) if found else as_path(given)


def find_asset(client: "Client", given: str, kind: str | None = None) -> dict[str, Any]:
    """The asset held under the id `given`, or under the only id of ours that begins so. Ends the command for none."""
    held = every(client, "/api/assets", kind=kind)
    found = [asset for asset in held if asset["id"] == given]
    if not found and _PREFIX.fullmatch(given.lower()):
        found = [asset for asset in held if asset["id"].startswith(given.lower())]
    _refuse_several(given, found, lambda asset: f"{asset['id']}  {say('kind.' + asset['kind'])}  {asset['name']}")
    if not found:
        fail(f"{AssetNotFound(id=given).message(language())} [{AssetNotFound.code}]", EXIT_REFUSED)
    return found[0]


def as_path(any_id: str) -> str:
    """An id as part of a path; a slash in it stays."""
    return quote(any_id, safe="/")


def _refuse_several(given: str, found: list[dict[str, Any]], shown: Callable[[dict[str, Any]], str]) -> None:
    if len(found) > 1:
        fail("\n  ".join([say("ambiguous", id=given), *_shortened(map(shown, found))]), EXIT_USED_WRONGLY)


def _shortened(lines: Iterable[str], most: int = 10) -> list[str]:
    every_line = list(lines)
    return every_line if len(every_line) <= most else [*every_line[:most], "…"]
