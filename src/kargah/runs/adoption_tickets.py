"""Tickets: who may name a path of the server's machine proves it by a file in the data directory.

The server reads no path that somebody names over HTTP, for whoever may use it need not be allowed to read its disk.
Whoever can write into its data directory is: the command writes what it asks for as `tickets/<word>.json`, names the
word in its request, and the server takes the ticket away before it does anything.
"""

import secrets
from pathlib import Path

from kargah.runs.errors import PathNotAllowed
from kargah.spec.layout import read_json, write_json

FOLDER = "tickets"


def write_ticket(home: Path, path: Path, *, move: bool) -> str:
    """Allow one adoption of `path`. Returns the ticket's word, 32 hex digits. Raises `OSError`."""
    word = secrets.token_hex(16)
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    write_json(folder / f"{word}.json", {"path": str(path), "move": move})
    return word


def take_ticket(home: Path, word: str, path: str, *, move: bool) -> Path:
    """The path that a ticket allows, which is used up by this. Raises `PathNotAllowed`."""
    file = home / FOLDER / f"{word}.json"
    try:
        allowed = read_json(file)
        file.unlink()
    except (OSError, ValueError) as error:
        raise PathNotAllowed() from error
    if allowed != {"path": path, "move": move} or not Path(path).is_absolute():
        raise PathNotAllowed()
    return Path(path)


def drop_ticket(home: Path, word: str) -> None:
    """Take a ticket back that was not used."""
    (home / FOLDER / f"{word}.json").unlink(missing_ok=True)
