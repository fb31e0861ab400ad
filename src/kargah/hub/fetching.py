"""Several files at the same time: one `Transfer` a thread, until all are there or the first failure."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from kargah.hub.failure import Stopped
from kargah.hub.plan import PlannedFile
from kargah.hub.transfer import Transfer


def fetch_all(
    files: Sequence[PlannedFile], num_connections: int, new_transfer: Callable[[], Transfer], stop: threading.Event
) -> None:
    """Fetch `files` in their order, `num_connections` at a time.

    The first failure sets `stop` and is raised at once, without waiting for threads that still read. Raises
    `TransferFailed` and `Stopped`.
    """
    if not files:
        return
    waiting = deque(files)

    def fetch_some() -> None:
        transfer = new_transfer()
        try:
            while not stop.is_set():
                try:
                    file = waiting.popleft()
                except IndexError:
                    return
                transfer.fetch(file)
            raise Stopped
        finally:
            transfer.close()

    num_threads = min(num_connections, len(files))
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
    ended, _ = wait([pool.submit(fetch_some) for _ in range(num_threads)], return_when=FIRST_EXCEPTION)
    errors = [error for future in ended if (error := future.exception()) is not None]
    if errors:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
    pool.shutdown()
