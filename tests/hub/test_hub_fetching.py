"""Which files are fetched at the same time: few large ones, many small ones beside them."""

import threading

import pytest

from kargah.hub.failure import Stopped, TransferFailed
from kargah.hub.fetching import fetch_all
from kargah.hub.plan import PlannedFile

LARGE = [PlannedFile(f"large{number}", 1 << 30, f"sha256:large{number}") for number in range(6)]
SMALL = [PlannedFile(f"small{number}", 100_000, f"sha256:small{number}") for number in range(40)]


class _Fetcher:
    """Stands where a `Transfer` stands; holds large files until `release` is set."""

    def __init__(self, fetched: list[str], under_way: set[str], most: list[int], release: threading.Event) -> None:
        self.fetched, self.under_way, self.most, self.release = fetched, under_way, most, release

    def fetch(self, file: PlannedFile) -> None:
        self.under_way.add(file.path)
        self.most.append(sum(path.startswith("large") for path in set(self.under_way)))
        if file.path.startswith("large"):
            assert self.release.wait(30)
        self.fetched.append(file.path)
        self.under_way.discard(file.path)
        if sum(path.startswith("small") for path in self.fetched) == len(SMALL):
            self.release.set()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("num_connections", [5, 16, 100])
def test_small_files_pass_large_ones_of_which_few_are_fetched_at_once(num_connections: int) -> None:
    fetched: list[str] = []
    most: list[int] = []
    under_way: set[str] = set()
    release = threading.Event()
    fetch_all(
        [*LARGE, *SMALL],
        num_connections,
        lambda: _Fetcher(fetched, under_way, most, release),  # type: ignore[arg-type,return-value]
        threading.Event(),
    )
    # The large ones waited for every small one: with fewer places for them than connections, that ends.
    assert sorted(fetched) == sorted(file.path for file in [*LARGE, *SMALL])
    assert max(most) == 4


def test_the_first_failure_stops_the_rest() -> None:
    class Failing:
        def fetch(self, file: PlannedFile) -> None:
            if file is SMALL[3]:
                raise TransferFailed("FILE_NOT_FOUND", "gone")
            if file is LARGE[0]:
                assert stop.wait(30)
                raise Stopped

        def close(self) -> None:
            pass

    stop = threading.Event()
    with pytest.raises(TransferFailed, match="gone"):
        fetch_all([LARGE[0], *SMALL], 3, Failing, stop)  # type: ignore[arg-type]
    assert stop.is_set()
