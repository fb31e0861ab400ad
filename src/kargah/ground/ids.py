"""Our own ids (32 hex digits) and times."""

import uuid
from datetime import UTC, datetime


def new_id() -> str:
    """A fresh random id of 32 hex digits."""
    return uuid.uuid4().hex


def now() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


def rfc3339(moment: datetime | None) -> str | None:
    """A time as RFC 3339 in UTC with milliseconds and `Z`. A naive time is taken for UTC."""
    if moment is None:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> datetime:
    """The time that `text` names. Raises `ValueError`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
