"""Verbs that are loaded when they are called: what one stands on weighs neither on the others nor on `--help`."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


def add(app: typer.Typer, name: str, help: str, place: str) -> None:
    """Give `app` a verb, or a noun with verbs of its own. `help` is all that its parent's help shows of it.

    `place` is `module.attribute` in this package: a function, or a `Typer`.
    """

    class Later(TyperCommand):
        def make_context(self, *args: Any, **settings: Any) -> Any:
            """The context of the command itself: the shell completes it and the parent runs it by that."""
            return _load(name, help, place).make_context(*args, **settings)

    app.command(name, help=help, cls=Later)(_nothing)


def _load(name: str, help: str, place: str) -> Any:
    module, _, attribute = place.partition(".")
    found = getattr(import_module(f"{__package__}.{module}"), attribute)
    around = typer.Typer(add_completion=False)
    around.callback()(_nothing)
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=name, help=help)
    else:
        around.command(name, help=help)(found)
    group = typer.main.get_command(around)
    assert isinstance(group, TyperGroup)
    return group.commands[name]


def _nothing() -> None:
    """Stands where Typer wants a function: around a command that is loaded, and in its place until it is."""
