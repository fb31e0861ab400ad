"""A client of the shared server, and one of a scripted server; waiting costs no time there and is written down."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from living import BERT, PATIENCE_SECONDS, Living
from scripted import Answer, MakeScripted, Scripted
from small_runs import COLUMNS

from kargah.client import Client, Dataset


@pytest.fixture
def make_scripted() -> Iterator[MakeScripted]:
    """Starts scripted servers; `listens=False` for one that refuses connections at first."""
    made: list[Scripted] = []

    def make(*script: Answer, listens: bool = True) -> Scripted:
        server = Scripted(list(script))
        made.append(server)
        if listens:
            server.listen()
        return server

    yield make
    for server in made:
        server.close()


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client waited between two tries; no time passes by it."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


@pytest.fixture
def make_client() -> Iterator[Callable[..., Client]]:
    """Makes clients of a server's address."""
    made: list[Client] = []

    def make(url: str, **options: object) -> Client:
        client = Client(url, **{"language": "en", **options})  # type: ignore[arg-type]
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="session")
def client(live: Living) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(live.url, language="en", patience_seconds=PATIENCE_SECONDS) as made:
        yield made


@pytest.fixture(scope="session")
def opinions(client: Client, tiny: Path) -> Dataset:
    """A data set of two splits that is ready; the model it is trained with is too."""
    client.models.fetch(BERT)
    folder = tiny / "opinions"
    upload = client.datasets.upload(
        name="نظرهای مشتری", train=[folder / "train.csv"], validation=[folder / "validation.csv"], columns=COLUMNS
    )
    return upload.wait()
