"""Several files at the same time: one `Transfer` a thread, until all are there or the first failure.

A small file costs a round trip and hardly any bytes, so many are fetched at once; a large one fills the line alone, so
few of them are, and the small ones come meanwhile.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from kargah.hub.failure import Stopped
from kargah.hub.plan import PlannedFile
from kargah.hub.transfer import Transfer

_SMALL_BYTES = 4 * 1024 * 1024
"""Up to here a file's round trip weighs more than its bytes: 50 ms are 2.5 MB at 50 MB/s."""
_LARGE_AT_ONCE = 4


def fetch_all(
    files: Sequence[PlannedFile], num_connections: int, new_transfer: Callable[[], Transfer], stop: threading.Event
) -> None:
    """Fetch `files` in their order, `num_connections` at a time and of these at most four large ones.

    The first failure sets `stop` and is raised at once, without waiting for threads that still read. Raises
    `TransferFailed` and `Stopped`.
    """
    if not files:
        return
    waiting = _Waiting(files)

    def fetch_some() -> None:
        transfer = new_transfer()
        try:
            while not stop.is_set():
                file = waiting.take()
                if file is None:
                    return
                try:
                    transfer.fetch(file)
                finally:
                    waiting.ended(file)
            raise Stopped
        finally:
            transfer.close()

    num_threads = min(num_connections, waiting.num_at_once)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
    ended, _ = wait([pool.submit(fetch_some) for _ in range(num_threads)], return_when=FIRST_EXCEPTION)
    errors = [error for future in ended if (error := future.exception()) is not None]
    if errors:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
    pool.shutdown()


class _Waiting:
    """The files nobody fetches yet."""

    def __init__(self, files: Sequence[PlannedFile]) -> None:
        self._large = deque(file for file in files if file.size_bytes > _SMALL_BYTES)
        self._small = deque(file for file in files if file.size_bytes <= _SMALL_BYTES)
        self._num_large_under_way = 0
        self._guard = threading.Lock()
        self.num_at_once = len(self._small) + min(len(self._large), _LARGE_AT_ONCE)
        """More threads than this have nothing to do."""

    def take(self) -> PlannedFile | None:
        """The next file, or None when this thread is needed no more: who fetches a large one takes the next."""
        with self._guard:
            if self._large and self._num_large_under_way < _LARGE_AT_ONCE:
                self._num_large_under_way += 1
                return self._large.popleft()
            return self._small.popleft() if self._small else None

    def ended(self, file: PlannedFile) -> None:
        with self._guard:
            self._num_large_under_way -= file.size_bytes > _SMALL_BYTES
