"""What may pass and is asked again, and how long to wait before: backoff with jitter, and what servers ask for."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from kargah.hub.job import TransferSettings

_RESET = re.compile(r"\bt=(\d+)")


class Passing(Exception):
    """A failure that may pass: no connection, 5xx, 429. `code` is what it ends in when it does not."""

    def __init__(
        self,
        detail: str,
        *,
        code: str = "HUB_UNREACHABLE",
        rate_limited: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.rate_limited = rate_limited
        self.retry_after = retry_after


def passing_of(status: int, headers: Mapping[str, str], detail: str) -> Passing | None:
    """The failure that an answer (its headers in lower case) means, if it is one that may pass."""
    if status != 429 and status < 500 and status not in (408, 425):
        return None
    wait = retry_after_seconds(headers.get("retry-after"), headers.get("ratelimit"))
    return Passing(detail, rate_limited=status == 429, retry_after=wait)


def backoff_seconds(settings: TransferSettings, attempt: int, chance: float) -> float:
    """Seconds to wait after failure `attempt` (from 1): exponential, capped, half of it spread by `chance` (0 to 1)."""
    full = min(settings.max_backoff_seconds, settings.first_backoff_seconds * 2.0 ** min(attempt - 1, 30))
    return full * (0.5 + 0.5 * chance)


def retry_after_seconds(retry_after: str | None, rate_limit: str | None = None) -> float | None:
    """Seconds a server asks for: `Retry-After` as a number or a date (RFC 9110 10.2.3), else `RateLimit: …;t=n`."""
    if retry_after is not None:
        text = retry_after.strip()
        if text.isdigit():
            return float(text)
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    reset = _RESET.search(rate_limit or "")
    return float(reset[1]) if reset else None
