"""Loaded by every Python process whose PYTHONPATH holds this folder: writes down whatever leaves the machine.

A line is `start <command>` or `<event> <host>`; loopback and local sockets are no news.
"""

import os
import sys
from typing import Any

_FILE = os.environ["WATCHED_FILE"]
_NEAR = ("", "localhost", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::")
_PLACE = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
    "socket.getnameinfo": 0,
}
"""Where in the arguments of an event stands the address."""


def _write(line: str) -> None:
    handle = os.open(_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, f"{line}\n".encode("utf-8", "backslashreplace"))
    finally:
        os.close(handle)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _PLACE:
        return
    place = arguments[_PLACE[event]]
    if isinstance(place, tuple):
        host = place[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        # A path (AF_UNIX), or nothing: a socket that is connected already.
        return
    else:
        host = place
    host = host.decode("utf-8", "replace") if isinstance(host, bytes) else str(host or "")
    if host not in _NEAR and not host.startswith("127."):
        _write(f"{event} {host}")


_write(f"start {' '.join(sys.orig_argv[1:])}")
sys.addaudithook(_watch)
