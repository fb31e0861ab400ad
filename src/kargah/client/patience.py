"""How long something that failed is tried again, and how long to wait between two tries."""

import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx

from kargah.client.errors import KargahClientError

FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 4.0


class Patience:
    """Counts from the first failure; `reset` after a success. `seconds` is asked at that failure for how long it lasts.
    Not for several threads at once."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """What failed works again."""
        self._until: float | None = None
        self._num_failures = 0

    def pause(
        self, failure: KargahClientError, *, retry_after_seconds: float | None = None, least_seconds: float = 0.0
    ) -> None:
        """Wait before the next try, longer each time, with a part left to chance so that many clients do not come
        back at one moment. Raises `failure` when the time is over, or would be before the server wants to be asked."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds()
        left = self._until - now
        if left <= 0 or (retry_after_seconds or 0.0) > left:
            raise failure
        growing = min(FIRST_DELAY_SECONDS * 2**self._num_failures, MAX_DELAY_SECONDS) * random.uniform(0.5, 1.0)
        self._num_failures = min(self._num_failures + 1, 10)
        time.sleep(min(max(growing, retry_after_seconds or 0.0, least_seconds), left))


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3), or None."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
