"""The event stream of one run: a snapshot, then every fact as it is taken in; it closes after the final state.

Ids are those of the event log, so a reconnect goes on exactly where it broke off, through restarts of the server.
"""

from collections.abc import AsyncIterator
from typing import Any

from fastapi.concurrency import run_in_threadpool

from kargah.ground.db import Database
from kargah.ground.events import Event, EventLog, Lagged
from kargah.ground.web.sse import ServerEvent
from kargah.runs.analytics import log_line, training_status
from kargah.runs.models import RunRow
from kargah.runs.queue import Capacity
from kargah.runs.states import ENDED, RunState
from kargah.text.languages import Language

SNAPSHOT_POINTS = 2000
WAIT_SECONDS = 30


class RunStream:
    """Makes streams of runs."""

    def __init__(self, database: Database, events: EventLog, capacity: Capacity) -> None:
        self._database = database
        self._capacity = capacity
        self._events = events

    def has_ended(self, run_id: str, last_id: int | None) -> bool:
        """Whether a client that names `last_id` has seen the run's final state."""
        if last_id is None or self._too_old(last_id):
            return False
        with self._database.read() as session:
            if RunState(session.get_one(RunRow, run_id).status) not in ENDED:
                return False
        return last_id <= self._events.last_id() and not self._events.after([f"runs:{run_id}"], last_id, limit=1)

    async def of(self, run_id: str, last_id: int | None, language: Language) -> AsyncIterator[ServerEvent]:
        """Events of a run behind `last_id`, or from a snapshot on."""
        topic = f"runs:{run_id}"
        subscription = self._events.subscribe([topic])
        try:
            if last_id is None or await run_in_threadpool(self._too_old, last_id):
                if last_id is not None:
                    yield ServerEvent({"type": "reset"})
                snapshot, sent, ended = await run_in_threadpool(self._snapshot, run_id, language)
                yield ServerEvent({"type": "snapshot", **snapshot}, str(sent))
                if ended:
                    return
            else:
                sent = last_id
            while True:
                # The log first: what happened while nobody listened, or faster than this reader reads.
                while missed := await run_in_threadpool(self._events.after, [topic], sent):
                    for event in missed:
                        yield _sent(event, language)
                        sent = event.id or sent
                        if _is_final(event):
                            return
                try:
                    while True:
                        live = await subscription.next(WAIT_SECONDS)
                        if live is None or live.id is None or live.id <= sent:
                            continue
                        yield _sent(live, language)
                        sent = live.id
                        if _is_final(live):
                            return
                except Lagged:
                    self._events.unsubscribe(subscription)
                    subscription = self._events.subscribe([topic])
        finally:
            self._events.unsubscribe(subscription)

    def _too_old(self, last_id: int) -> bool:
        oldest = self._events.oldest_id()
        return last_id > self._events.last_id() or (oldest > 0 and last_id < oldest - 1)

    def _snapshot(self, run_id: str, language: Language) -> tuple[dict[str, Any], int, bool]:
        with self._database.read() as session:
            run = session.get_one(RunRow, run_id)
            # Read in one transaction: the snapshot is the state right behind this event.
            sent = self._events.last_id_in(session)
            return (
                training_status(session, run, language, SNAPSHOT_POINTS, self._capacity),
                sent,
                RunState(run.status) in ENDED,
            )


def in_language(event: Event, language: Language) -> dict[str, Any]:
    """The data of a run's event, a log line's message in `language`."""
    return log_line(event.data, language) if event.type == "log" else event.data


def _sent(event: Event, language: Language) -> ServerEvent:
    # A log line's own `type` repeats its level; within the stream `type` says what kind of event it is.
    return ServerEvent({**in_language(event, language), "type": event.type}, str(event.id))


def _is_final(event: Event) -> bool:
    return event.type == "state" and bool(event.data.get("final"))
