"""Cursors of long lists: opaque to the client, the sort key of the last row to us."""

import base64
import binascii
import json
from typing import Annotated, Any

from fastapi import Query

from kargah.ground.errors import invalid

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
