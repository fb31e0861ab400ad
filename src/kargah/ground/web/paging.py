"""Cursors of long lists: opaque to the client, the sort key of the last row to us."""

import base64
import binascii
import json
from datetime import datetime
from typing import Annotated, Any

from fastapi import Query

from kargah.ground.errors import invalid
from kargah.ground.ids import parse_rfc3339

DEFAULT_LIMIT = 200
MAX_LIMIT = 1000

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="rows at most")]
Cursor = Annotated[str | None, Query(max_length=400, description="`page.next` of the answer before")]


def encode_cursor(*key: Any) -> str:
    """A sort key as a cursor."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, num_parts: int) -> list[Any]:
    """The sort key in a cursor. Raises `ValidationFailed`."""
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise invalid("cursor") from error
    if not isinstance(key, list) or len(key) != num_parts:
        raise invalid("cursor")
    return key


def decode_place(cursor: str) -> tuple[datetime, str]:
    """The place in a list that is ordered by time and id. Raises `ValidationFailed`."""
    created, last_id = decode_cursor(cursor, 2)
    if not isinstance(created, str) or not isinstance(last_id, str):
        raise invalid("cursor")
    try:
        moment = parse_rfc3339(created)
    except ValueError as error:
        raise invalid("cursor") from error
    if moment.tzinfo is None:
        raise invalid("cursor")
    return moment, last_id
