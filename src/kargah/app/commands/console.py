"""What every verb shares: the language of the terminal, plain or JSON output, errors as sentences, exit codes.

Exit codes: 0 done, 1 failed, 2 used wrongly, 3 the server refused, 4 no server answers, 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console

from kargah.app.client import ApiError, Client, ServerUnreachable
from kargah.ground.errors import KargahError
from kargah.ground.settings import load_settings
from kargah.text.languages import Language, from_environment
from kargah.text.messages import translate

EXIT_FAILED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 1, 3, 4, 130

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def language() -> Language:
    """The language of this terminal."""
    return from_environment()


def say(key: str, /, **params: Any) -> str:
    """A sentence of the command line, in the terminal's language."""
    return translate(f"cli.{key}", language(), **params)


def print_json(value: Any) -> None:
    """A value as one JSON document on standard output, for programs."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong, on standard error, and end."""
    err.print(message, style="red", markup=False)
    raise typer.Exit(code)


@contextmanager
def connected() -> Iterator[Client]:
    """A client of the server; what goes wrong with it becomes a sentence and an exit code."""
    try:
        settings = load_settings()
        client = Client(settings.url, settings.token.get_secret_value() if settings.token else None, language())
        try:
            yield client
        finally:
            client.close()
    except ApiError as error:
        details = f"\n{json.dumps(error.details, ensure_ascii=False)}" if error.details else ""
        fail(f"{error.message} [{error.code}]{details}", EXIT_REFUSED)
    except ServerUnreachable as error:
        fail(say("unreachable", url=str(error)), EXIT_UNREACHABLE)
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    except KeyboardInterrupt:
        fail(say("interrupted"), EXIT_INTERRUPTED)
