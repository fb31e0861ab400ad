"""What it costs that runs survive: how soon a restarted server has them again, and what being watched takes away."""

from collections.abc import Iterator

from bench import overhead, restart
from bench.report import Table


def measure(*, quick: bool) -> Iterator[Table]:
    """Two tables. About 5 minutes when `quick`, else 20."""
    yield restart.measure(quick=quick)
    yield overhead.measure(quick=quick)
