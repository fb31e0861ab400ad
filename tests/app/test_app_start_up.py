"""What a command stands on when it starts: a verb that asks the server over HTTP loads none of the server's rooms."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from living import NOBODY

from kargah.app.cli import app

SERVER_ROOMS = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "pyarrow", "numpy"}

PROGRAM = """
import json, sys
sys.argv[0] = "kargah"
from kargah.app.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
print("\\n" + json.dumps({"code": code, "loaded": sorted(sys.modules)}), file=sys.stderr)
"""


def _run(home: Path, *arguments: str, **environment: str) -> tuple[int, str, set[str]]:
    """The exit code, what was said on standard output, and every module that was loaded for it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("KARGAH_")}
    surroundings = {**own, "KARGAH_HOME": str(home), "KARGAH_URL": NOBODY, "KARGAH_LANG": "en", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env=surroundings, check=True
    )
    told = json.loads(done.stderr.splitlines()[-1])
    return told["code"], done.stdout, set(told["loaded"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("runs", "list"),
        ("checkpoints",),
        ("data",),
        ("assets",),
        ("downloads",),
        ("catalog", "models"),
        ("catalog", "requests"),
        ("download", "a/b"),
        ("logs", "0" * 32),
        ("train", "--base", "a/b", "--dataset", "c/d"),
    ],
)
def test_a_verb_that_asks_the_server_loads_none_of_its_rooms(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, _, loaded = _run(tmp_path, *arguments)
    assert code == 4
    assert "kargah.client" in loaded
    assert loaded & SERVER_ROOMS == set()


@pytest.mark.parametrize(
    "arguments", [("hub", "list"), ("catalog", "check", "--help"), ("config", "list"), ("doctor", "--help")]
)
def test_nor_does_one_that_needs_no_server(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, _, loaded = _run(tmp_path, *arguments)
    assert code == 0
    assert loaded & SERVER_ROOMS == set()


def test_help_loads_no_verb(tmp_path: Path) -> None:
    code, said, loaded = _run(tmp_path, "--help")
    assert code == 0
    assert "Checkpoints:" in said
    rooms = {name for name in loaded if name.startswith("kargah.app.commands.")}
    assert rooms == {"kargah.app.commands.later", "kargah.app.commands.terminal"}


@pytest.mark.parametrize("noun", ["runs", "data", "catalog", "config"])
def test_the_help_of_a_noun_speaks_no_http(tmp_path: Path, noun: str) -> None:
    code, _, loaded = _run(tmp_path, noun, "--help")
    assert code == 0
    assert loaded & {*SERVER_ROOMS, "httpx", "kargah.client"} == set()


def test_the_shell_completes_verbs_that_are_not_loaded_yet(tmp_path: Path) -> None:
    def offered(words: str, at: int) -> tuple[list[str], set[str]]:
        shell = {"_KARGAH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        code, said, loaded = _run(tmp_path, **shell)
        assert code == 0
        return said.split(), loaded

    verbs, loaded = offered("kargah d", 1)
    assert verbs == ["demo", "doctor", "download", "downloads", "data"]
    assert "kargah.app.commands.data" not in loaded
    verbs, loaded = offered("kargah data ", 2)
    assert {"list", "upload", "show", "rows", "delete"} <= set(verbs)
    assert loaded & {*SERVER_ROOMS, "httpx"} == set()
    assert "--only" in offered("kargah catalog check --", 3)[0]


def test_every_verb_is_where_it_is_said_to_be() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        loaded = command.make_context(name, [], resilient_parsing=True).command
        assert (loaded.name, loaded.help) == (name, command.help)
        for inner, one in getattr(loaded, "commands", {}).items():
            found = one.make_context(inner, [], resilient_parsing=True).command
            assert (found.name, found.help) == (inner, one.help)
            assert found.callback is not None
