"""`kargah config`: every setting, where it comes from, and changing `kargah.toml`."""

import difflib
import getpass
import os
import re
import sys
from typing import Annotated, Any

import typer

from kargah.app.commands import completing
from kargah.app.commands.config_file import ONLY_BY_ENVIRONMENT, ConfigFile, home_directory, is_secret
from kargah.app.commands.console import (
    EXIT_FAILED,
    EXIT_USED_WRONGLY,
    AsJson,
    fail,
    language,
    print_json,
    say,
    show_table,
    tell,
)
from kargah.ground.errors import KargahError
from kargah.ground.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help=say("help.config.name"), autocompletion=completing.setting_names, show_default=False
    ),
]

_PASSWORD_IN_URL = re.compile(r"(://[^/@\s:]*):[^/@\s]*@")


@app.command("list", help=say("help.config.list"))
def list_settings(as_json: AsJson = False) -> None:
    """Every setting: its value, and where that comes from."""
    rows = _facts()
    if as_json:
        print_json(rows)
        return
    table = [(row["name"], _shown(row), say(f"source.{row['source']}")) for row in rows]
    show_table(("setting", "value", "from"), table, fold=("value",))


@app.command("get", help=say("help.config.get"))
def get(name: Name, as_json: AsJson = False) -> None:
    """One setting's value; of a secret only whether it is set."""
    row = next(row for row in _facts() if row["name"] == _known(name))
    if as_json:
        print_json(row)
    else:
        tell(_shown(row))


@app.command("set", help=say("help.config.set"))
def set_value(
    name: Name,
    value: Annotated[
        str | None, typer.Argument(metavar="[VALUE]", help=say("help.config.value"), show_default=False)
    ] = None,
) -> None:
    """Write a setting into kargah.toml."""
    known = _writable(name)
    file = _file()
    try:
        file.put(known, _given(known) if value is None else value)
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_USED_WRONGLY)
    tell(say("settingWritten", name=known, path=str(file.path)))
    if os.environ.get(variable(known)):
        tell(say("environmentWins", name=variable(known)), to_errors=True)


@app.command("unset", help=say("help.config.unset"))
def unset(name: Name) -> None:
    """Take a setting out of kargah.toml."""
    known, file = name.lower().removeprefix("kargah_").replace("-", "_"), _file()
    try:
        # What is no setting (any more) may stand in the file all the same, and must be taken out of it.
        if not file.remove(known):
            tell(say("settingNotThere", name=_known(name), path=str(file.path)))
            return
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    tell(say("settingRemoved", name=known, path=str(file.path)))


@app.command("path", help=say("help.config.path"))
def path() -> None:
    """Where kargah.toml stands, or would stand."""
    tell(str(_file().path))


def variable(name: str) -> str:
    """The environment's name of a setting."""
    return f"KARGAH_{name.upper()}"


def _file() -> ConfigFile:
    try:
        return ConfigFile(home_directory())
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)


def _facts() -> list[dict[str, Any]]:
    """Every setting as `{name, variable, value, source, secret, set}`; a secret's value is null."""
    try:
        settings = load_settings()
        written = ConfigFile(settings.home).values()
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    rows = []
    for name in Settings.model_fields:
        value = getattr(settings, name)
        source = "environment" if os.environ.get(variable(name)) else "file" if name in written else "default"
        secret = is_secret(name)
        rows.append(
            {
                "name": name,
                "variable": variable(name),
                "value": None if secret else _value(value),
                "source": source,
                "secret": secret,
                "set": value is not None,
            }
        )
    return rows


def _value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_value(one) for one in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _PASSWORD_IN_URL.sub(r"\1:***@", str(value))


def _shown(row: dict[str, Any]) -> str:
    value = row["value"]
    if row["secret"]:
        return say("secretSet") if row["set"] else ""
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _known(name: str) -> str:
    known = name.lower().removeprefix("kargah_").replace("-", "_")
    if known not in Settings.model_fields:
        near = difflib.get_close_matches(known, Settings.model_fields, n=3, cutoff=0.5)
        fail(say("noSuchSetting", name=name) + _perhaps(near), EXIT_USED_WRONGLY)
    return known


def _writable(name: str) -> str:
    known = _known(name)
    if known in ONLY_BY_ENVIRONMENT:
        fail(say("onlyByEnvironment", name=variable(known)), EXIT_USED_WRONGLY)
    return known


def _perhaps(near: list[str]) -> str:
    return f" {say('perhaps', names=', '.join(near))}" if near else ""


def _given(name: str) -> str:
    """A value that does not stand on the command line, where others could read it: typed unseen, or from a pipe."""
    if sys.stdin is not None and not sys.stdin.isatty():
        value = sys.stdin.readline().rstrip("\r\n")
    elif is_secret(name):
        value = getpass.getpass(f"{name}: ")
    else:
        value = ""
    if not value:
        fail(say("noValue", name=name), EXIT_USED_WRONGLY)
    return value
