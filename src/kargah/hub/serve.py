"""A hub of folders on the loopback address. `python -m kargah.hub.serve ROOT [--port P] [--rate-limit BYTES_PER_S]`

Says its address on standard output as soon as it listens; port 0 takes a free one.
"""

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from kargah.hub.folder_source import FolderSource
from kargah.hub.protocol import hub_router
from kargah.hub.source import LARGE_BYTES

HOST = "127.0.0.1"


def folder_app(root: Path, *, bytes_per_second: int | None = None, large_bytes: int = LARGE_BYTES) -> FastAPI:
    """An application that serves the folders below `root` as a hub."""
    app = FastAPI(openapi_url=None)
    app.include_router(hub_router(FolderSource(root, large_bytes=large_bytes), bytes_per_second=bytes_per_second))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m kargah.hub.serve", description="Serve folders as a hub.")
    parser.add_argument("root", type=Path, help="folder with models/<org>/<name> and datasets/<org>/<name>")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rate-limit", type=int, metavar="BYTES_PER_S", help="speed of each file's body")
    parser.add_argument("--large-bytes", type=int, default=LARGE_BYTES, help="from this size on a file counts as large")
    asked = parser.parse_args(arguments)
    if not asked.root.is_dir():
        parser.error(f"no such folder: {asked.root}")
    app = folder_app(asked.root, bytes_per_second=asked.rate_limit, large_bytes=asked.large_bytes)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((HOST, asked.port))
    listening.listen(128)
    sys.stdout.write(f"http://{HOST}:{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
