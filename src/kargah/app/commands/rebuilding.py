"""`kargah doctor --rebuild`: the database made again from the files, and what is told of it."""

import typer

from kargah.app.commands.console import EXIT_FAILED, fail, figure, language, print_json, tell
from kargah.app.rebuild.rebuilding import Rebuilt, rebuild
from kargah.ground.errors import KargahError
from kargah.ground.settings import load_settings
from kargah.text.messages import translate


def rebuild_database(as_json: bool) -> None:
    """Make it again and end with 1 when something was left out."""
    try:
        rebuilt = rebuild(load_settings())
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    except OSError as error:
        fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), EXIT_FAILED)
    if as_json:
        print_json(_as_json(rebuilt))
    else:
        _show(rebuilt)
    if rebuilt.left_out:
        raise typer.Exit(EXIT_FAILED)


def _as_json(rebuilt: Rebuilt) -> dict[str, object]:
    return {
        "rebuilt": rebuilt.counts,
        "former": str(rebuilt.former) if rebuilt.former else None,
        "formerWasRead": rebuilt.former_was_read,
        "leftOut": [
            {"path": str(one.path), "reason": one.reason, "message": _reason(one.reason), "problem": one.problem}
            for one in rebuilt.left_out
        ],
    }


def _show(rebuilt: Rebuilt) -> None:
    tell(_say("done"))
    for name, number in rebuilt.counts.items():
        tell(f"  {_say(f'count.{name}')}: {figure(str(number))}")
    if rebuilt.former is not None:
        tell(_say("former", path=str(rebuilt.former)))
        if not rebuilt.former_was_read:
            tell(_say("formerUnread"))
    if rebuilt.left_out:
        tell(_say("leftOut", num=len(rebuilt.left_out)), style="yellow")
    for one in rebuilt.left_out:
        tell(f"  {one.path}: {_reason(one.reason)}{f' ({one.problem})' if one.problem else ''}")


def _reason(reason: str) -> str:
    return _say(f"reason.{reason}")


def _say(key: str, /, **params: object) -> str:
    return translate(f"rebuild.{key}", language(), **params)
