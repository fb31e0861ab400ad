"""`Client`: one server, all of its API."""

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from types import TracebackType
from typing import Any, Self

from kargah.client import routes
from kargah.client.checkpoints import Checkpoints
from kargah.client.connection import Connection, given
from kargah.client.holdings import Assets, Catalog, Datasets, Hub, Models
from kargah.client.records import Health
from kargah.client.run_records import Event
from kargah.client.streams import follow, follow_as, never, run_ended, transfer_ended
from kargah.client.training import Analysis, Runs
from kargah.text.languages import Language, from_environment

DEFAULT_URL = "http://127.0.0.1:8765"


class Client:
    """Talks to one server, from any number of threads; a context manager that closes its connections.

    `url` and `token` are those of the environment (`KARGAH_URL`, `KARGAH_TOKEN`) where they are not given, `language`
    (of the server's sentences) that of the terminal. `timeout` is in seconds, for one answer. `patience_seconds` is how
    long a broken stream, or a request that may be repeated, is tried again before `ServerUnreachable`.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        language: Language | None = None,
        *,
        timeout: float = 30.0,
        patience_seconds: float = 30.0,
    ) -> None:
        self._connection = Connection(
            url or os.environ.get("KARGAH_URL") or DEFAULT_URL,
            token or os.environ.get("KARGAH_TOKEN") or None,
            language or from_environment(),
            timeout,
            patience_seconds,
        )
        self.assets = Assets(self._connection)
        self.hub = Hub(self._connection)
        self.catalog = Catalog(self._connection)
        self.models = Models(self._connection, self.assets)
        self.datasets = Datasets(self._connection, self.assets)
        self.analysis = Analysis(self._connection)
        self.runs = Runs(self._connection, self.analysis)
        self.checkpoints = Checkpoints(self._connection)

    @property
    def url(self) -> str:
        """The server's address."""
        return self._connection.url

    def health(self) -> Health:
        """Whether the server is ready, and on what it stands."""
        return self._connection.data(routes.HEALTH, Health)

    def events(self, topics: Iterable[str] | None = None, after: str | None = None) -> Generator[Event, None, None]:
        """All that happens, without an end: topics `runs`, `downloads`, `assets`, `system`, `run:<id>`; all of the
        first four when None. `after` is the `event_id` of the last one seen, to go on behind it."""
        named = [topics] if isinstance(topics, str) else topics
        query = {} if named is None else {"topics": ",".join(named)}
        return follow_as(Event, self._connection, routes.EVENTS.at(), query, never, after)

    def get(self, path: str, **params: Any) -> Any:
        """`data` of a GET, as it came. Raises `ApiError`, `ServerUnreachable`."""
        return self.answer("GET", path, params=given(params))["data"]

    def post(self, path: str, body: Any | None = None) -> Any:
        """`data` of a POST, as it came. Raises `ApiError`, `ServerUnreachable`."""
        return self.answer("POST", path, json=body)["data"]

    def delete(self, path: str, **params: Any) -> Any:
        """`data` of a DELETE, as it came. Raises `ApiError`, `ServerUnreachable`."""
        return self.answer("DELETE", path, params=given(params))["data"]

    def answer(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """The whole envelope of a good answer; `request` as httpx takes it. Raises `ApiError`, `ServerUnreachable`."""
        return self._connection.answer(method, path, **request)

    def stream(self, path: str, **params: Any) -> Generator[dict[str, Any], None, None]:
        """Events of a stream as they come, up to its last. Raises `ApiError`, `ServerUnreachable`."""
        endless = path == routes.EVENTS.path
        is_last = never if endless else lambda data: transfer_ended(data) or run_ended(data)
        with closing(follow(self._connection, path, params, is_last)) as events:
            for told in events:
                yield told.data

    def close(self) -> None:
        """Let the connections go."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"
