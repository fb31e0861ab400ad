"""What the OpenAPI document says of errors, so that each route names those it can answer with."""

from typing import Any

from kargah.ground.errors import KargahError
from kargah.ground.web.envelope import Failure

EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a stream of events",
        "content": {"text/event-stream": {"schema": {"description": "events whose data is a JSON object"}}},
    },
    204: {"description": "the stream has ended; do not reconnect"},
}


def errors(*classes: type[KargahError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its own errors by status, with their codes."""
    by_status: dict[int, list[str]] = {}
    for cls in classes:
        by_status.setdefault(cls.status, []).append(cls.code)
    return {
        status: {"model": Failure, "description": ", ".join(f"`{code}`" for code in sorted(codes))}
        for status, codes in sorted(by_status.items())
    }
