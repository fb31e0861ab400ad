"""How long to wait before asking again: backoff with jitter, and what servers write into `Retry-After`."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from kargah.hub.job import TransferSettings

_RESET = re.compile(r"\bt=(\d+)")


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
