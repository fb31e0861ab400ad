"""`kargah explain`: what an error code means and what to do about it."""

import difflib
from typing import Annotated

import typer

from kargah.app.commands import completing
from kargah.app.commands.console import EXIT_USED_WRONGLY, AsJson, fail, language, print_json, say, tell, tell_at_length
from kargah.text.messages import has, translate


def explain(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="[CODE]", help=say("help.argument.code"), autocompletion=completing.error_codes, show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The cause and the cure of an error code; without one, every code."""
    if code is None:
        codes = completing.explained_codes()
        if as_json:
            print_json(codes)
        else:
            for one in codes:
                tell(one)
        return
    known = _known(code)
    cause, cure = (translate(f"book.{known}.{part}", language()) for part in ("cause", "cure"))
    if as_json:
        print_json({"code": known, "cause": cause, "cure": cure})
        return
    tell(known, style="bold")
    for heading, text in (("cause", cause), ("cure", cure)):
        tell(f"\n{say(heading)}")
        tell_at_length(text)


def _known(code: str) -> str:
    known = code.strip("[] ").upper().replace("-", "_").replace(" ", "_")
    if not (has(f"book.{known}.cause", language()) and has(f"book.{known}.cure", language())):
        near = difflib.get_close_matches(known, completing.explained_codes(), n=3, cutoff=0.5)
        perhaps = f" {say('perhaps', names=', '.join(near))}" if near else ""
        fail(say("noSuchCode", code=code) + perhaps, EXIT_USED_WRONGLY)
    return known
