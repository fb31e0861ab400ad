"""The event log: past-tense facts with growing ids, kept in the table `events`, and their live delivery.

A fact is appended in the transaction that makes it true, and handed to subscribers after the commit, in id order. The
log is the truth; a subscriber that fell behind is told so (`Lagged`) and reads the log again. Facts are kept until
`prune`; `oldest_id` tells a reader whether its place is still in the log.
"""

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, Index, Integer, String, Table, Text, func, insert, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from kargah.ground.db import Base, Database, UtcDateTime, after_commit
from kargah.ground.ids import now

QUEUE_LIMIT = 5000


class EventRow(Base):
    __tablename__ = "events"
    __table_args__ = (Index("ix_events_topic_id", "topic", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    topic: Mapped[str] = mapped_column(String(80))
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


_EVENTS = cast(Table, EventRow.__table__)
_APPEND = insert(_EVENTS).returning(_EVENTS.c.id, sort_by_parameter_order=True)


@dataclass(frozen=True, slots=True)
class Event:
    """One fact. `id` is None for a passing one (download progress) that is not in the log."""

    id: int | None
    topic: str
    type: str
    data: dict[str, Any]


class Lagged(Exception):
    """A subscriber did not keep up; it should read the log again."""


class Subscription:
    """Facts of some topics, in order, for one asynchronous reader."""

    def __init__(self, topics: frozenset[str], loop: asyncio.AbstractEventLoop) -> None:
        self.topics = topics
        self._loop = loop
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._lagged = False

    def offer(self, event: Event) -> None:
        """Hand over a fact; called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its reader with it
            self._loop.call_soon_threadsafe(self._take, event)

    async def next(self, timeout_seconds: float) -> Event | None:
        """The next fact, or None when none came in time. Raises `Lagged`."""
        if not self._waiting and not self._lagged:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout_seconds)
            except TimeoutError:
                return None
        if self._lagged:
            raise Lagged
        return self._waiting.popleft() if self._waiting else None

    def _take(self, event: Event) -> None:
        if len(self._waiting) >= QUEUE_LIMIT:
            self._lagged = True
        else:
            self._waiting.append(event)
        self._arrived.set()


class EventLog:
    """Appends facts and feeds subscribers of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guard = threading.Lock()
        self._subscriptions: set[Subscription] = set()

    def append(self, session: Session, topic: str, type: str, data: dict[str, Any]) -> int:
        """Append a fact within a write transaction; delivered after its commit. Returns its id."""
        return self.append_all(session, topic, [(type, data)])[0]

    def append_all(self, session: Session, topic: str, facts: Sequence[tuple[str, dict[str, Any]]]) -> list[int]:
        """Append several facts (type and data) of one topic in their order. Returns their ids."""
        if not facts:
            return []
        at = now()
        rows = [{"topic": topic, "type": type, "data": _json(data), "created_at": at} for type, data in facts]
        session.flush()
        ids = list(session.execute(_APPEND, rows).scalars())
        events = [Event(id, topic, type, data) for id, (type, data) in zip(ids, facts, strict=True)]
        after_commit(session, lambda: self._publish_all(events))
        return ids

    def publish(self, event: Event) -> None:
        """Hand a fact to whoever listens now. Directly only for facts that are not in the log."""
        with self._guard:
            listeners = [
                s for s in self._subscriptions if event.topic in s.topics or event.topic.split(":")[0] in s.topics
            ]
        for listener in listeners:
            listener.offer(event)

    def _publish_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.publish(event)

    def subscribe(self, topics: Iterable[str]) -> Subscription:
        """Listen from now on; `runs` also hears `runs:<id>`. Called on the event loop."""
        subscription = Subscription(frozenset(topics), asyncio.get_running_loop())
        with self._guard:
            self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening."""
        with self._guard:
            self._subscriptions.discard(subscription)

    def after(self, topics: Iterable[str], last_id: int, limit: int = 2000) -> list[Event]:
        """Facts of `topics` behind `last_id`, oldest first, `limit` at most."""
        names = list(topics)
        matches: ColumnElement[bool] = EventRow.topic.in_(names)
        for name in names:
            if ":" not in name:
                matches = matches | EventRow.topic.startswith(f"{name}:", autoescape=True)
        with self._database.read() as session:
            rows = session.scalars(
                select(EventRow).where(EventRow.id > last_id, matches).order_by(EventRow.id).limit(limit)
            ).all()
        return [Event(row.id, row.topic, row.type, json.loads(row.data)) for row in rows]

    def last_id(self) -> int:
        """The id of the newest fact, 0 when there is none."""
        with self._database.read() as session:
            return self.last_id_in(session)

    @staticmethod
    def last_id_in(session: Session) -> int:
        """The id of the newest fact as `session` sees the log."""
        return session.scalar(select(func.max(EventRow.id))) or 0

    def oldest_id(self) -> int:
        """The id of the oldest fact still kept, 0 when there is none."""
        with self._database.read() as session:
            return session.scalar(select(func.min(EventRow.id))) or 0


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False)
