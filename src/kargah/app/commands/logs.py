"""`kargah logs`: the last lines of a run's log, and following it to the run's end through restarts of the server."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kargah.app.commands import completing
from kargah.app.commands.console import AsJson, connected, print_json, say, tell
from kargah.app.commands.listing import find_run
from kargah.app.commands.run_report import show_line

if TYPE_CHECKING:
    from kargah.client import Client

LEVELS = ("info", "warning", "error")
DEFAULT_LINES = 50
KEPT_LINES = 500
"""Lines that the server answers with at most."""

Line = dict[str, Any]


def logs(
    run_id: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help=say("help.argument.run"), autocompletion=completing.runs, show_default=False
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help=say("help.logs.follow"))] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help=say("help.logs.lines"))] = DEFAULT_LINES,
    level: Annotated[
        Literal["info", "warning", "error"], typer.Option("--level", help=say("help.logs.level"))
    ] = "info",
    as_json: AsJson = False,
) -> None:
    """The last lines of a run's log. Ctrl-C only ends watching: the run goes on."""
    wanted = LEVELS[LEVELS.index(level) :]
    with connected("runGoesOn" if follow else "interrupted") as client:
        found = find_run(client, run_id)
        if follow:
            _follow(client, found, lines, wanted, as_json)
            return
        newest = client.get(f"/api/training/status/{found}", maxPoints=2)["logs"]
    shown = _last([_line(line) for line in newest if line["level"] in wanted], lines)
    if as_json:
        print_json(shown)
        return
    for line in shown:
        show_line(line)


def _follow(client: "Client", run_id: str, lines: int, wanted: tuple[str, ...], as_json: bool) -> None:
    heard = Heard()
    started = False
    status = ""
    for event in client.stream(f"/api/training/stream/{run_id}"):
        fresh = list(heard.new_lines(event))
        shown = [line for line in fresh if line["level"] in wanted]
        if event["type"] == "snapshot" and not started:
            shown, started = _last(shown, lines), True
        for line in shown:
            print_json(line, indent=None) if as_json else show_line(line)
        status = event["status"] if event.get("type") in ("snapshot", "state") else status
    if not as_json and status:
        tell(say("runIs", status=say(f"status.{status}")), to_errors=True)


class Heard:
    """The lines heard so far, so that a snapshot in the middle of a stream repeats none of them."""

    def __init__(self) -> None:
        self._last: deque[Line] = deque(maxlen=KEPT_LINES)

    def new_lines(self, event: dict[str, Any]) -> Iterator[Line]:
        """The lines in an event that were not heard before, oldest first."""
        if event["type"] == "log":
            told = [_line(event)]
        elif event["type"] == "snapshot":
            every = [_line(line) for line in event["logs"]]
            told = every[self._num_heard(every) :]
            if self._last and len(told) == KEPT_LINES:
                tell(say("linesMissed"), to_errors=True)
        else:
            return
        self._last.extend(told)
        yield from told

    def _num_heard(self, every: list[Line]) -> int:
        """How many of the newest lines were heard: the longest end of what was heard that they begin with."""
        heard = list(self._last)
        for length in range(min(len(heard), len(every)), 0, -1):
            if heard[-length:] == every[:length]:
                return length
        return 0


def _line(value: dict[str, Any]) -> Line:
    return {name: value.get(name) for name in ("timestamp", "level", "message", "details")}


def _last(lines: list[Line], count: int) -> list[Line]:
    return lines[-count:] if count else []
