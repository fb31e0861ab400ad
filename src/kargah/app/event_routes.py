"""`GET /api/events`: everything that happens, in one stream, for a front end with many tabs."""

import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from kargah.assets.transfers import Snapshot
from kargah.ground.errors import ValidationFailed, invalid
from kargah.ground.events import Event, EventLog, Lagged
from kargah.ground.web.documented import EVENT_STREAM, errors
from kargah.ground.web.envelope import language_of
from kargah.ground.web.sse import Drain, ServerEvent, last_event_number, stream
from kargah.runs.streams import in_language
from kargah.text.languages import Language

TOPICS = ("runs", "downloads", "assets", "system")
REPLAY_AT_MOST = 2000


def build_router(events: EventLog, drain: Drain) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get(
        "/api/events", response_class=Response, responses={**EVENT_STREAM, **errors(ValidationFailed)}, tags=["system"]
    )
    def all_events(
        request: Request,
        topics: Annotated[
            str, Query(description="comma-separated: runs, downloads, assets, system, run:{id}")
        ] = "runs,downloads,assets,system",
    ) -> Response:
        """Facts of the topics named, from now on or behind `Last-Event-ID`."""
        last = last_event_number(request)
        return stream(_events(events, _topics(topics), last, language_of(request)), drain)

    return router


def _topics(text: str) -> list[str]:
    named = [part.strip() for part in text.split(",") if part.strip()]
    found = []
    for name in named:
        if name in TOPICS:
            found.append(name)
        elif re.fullmatch(r"run:[0-9a-f]{32}", name):
            found.append(name.replace("run:", "runs:"))
        else:
            raise invalid("topics", "problem.oneOf", expected=", ".join([*TOPICS, "run:{id}"]))
    if not found:
        raise invalid("topics", "problem.missing")
    return found


async def _events(
    events: EventLog, topics: list[str], last_id: int | None, language: Language
) -> AsyncIterator[ServerEvent]:
    subscription = events.subscribe(topics)
    try:
        newest = await run_in_threadpool(events.last_id)
        sent = newest if last_id is None else last_id
        oldest = await run_in_threadpool(events.oldest_id)
        if sent > newest or (oldest > 0 and sent < oldest - 1):
            sent = newest
            yield ServerEvent({"topic": "system", "type": "reset"}, str(sent))
        else:
            yield ServerEvent({"topic": "system", "type": "hello"}, str(sent))
        while True:
            while missed := await run_in_threadpool(events.after, topics, sent, REPLAY_AT_MOST):
                for event in missed:
                    yield _wire(event, language)
                    sent = event.id or sent
            try:
                while True:
                    live = await subscription.next(30)
                    if live is None or (live.id is not None and live.id <= sent):
                        continue
                    yield _wire(live, language)
                    sent = live.id or sent
            except Lagged:
                events.unsubscribe(subscription)
                subscription = events.subscribe(topics)
    finally:
        events.unsubscribe(subscription)


def _wire(event: Event, language: Language) -> ServerEvent:
    topic = event.topic.split(":")[0]
    snapshot = event.data.get("snapshot")
    data = snapshot.wire(language) if isinstance(snapshot, Snapshot) else in_language(event, language)
    return ServerEvent({**data, "topic": topic, "type": event.type}, str(event.id) if event.id else None)
