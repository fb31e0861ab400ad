"""Transfers: whatever is on its way into the registry, from a hub or by upload, and the stream that tells of it.

    queued → resolving → downloading → verifying → converting → done | error      (paused at any point before the end)

A transfer ends exactly once. Its ending is committed to the database before anyone hears of it, so that the last event
of its stream always comes, also to a client that connects later or after a restart. Every event is a whole snapshot and
its id (milliseconds since 1970, strictly growing per transfer) grows across restarts of the server.
"""

import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select
from sqlalchemy.orm import Session

from kargah.assets.models import AssetRow, TransferRow
from kargah.assets.registry import Registry
from kargah.ground.db import Database, after_commit
from kargah.ground.errors import InvalidState
from kargah.ground.events import Event, EventLog, Lagged
from kargah.ground.ids import new_id, now
from kargah.ground.web.sse import ServerEvent
from kargah.text.languages import Language
from kargah.text.messages import translate

PERSIST_EVERY_SECONDS = 1.0


class State(StrEnum):
    """Where a transfer stands."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    CONVERTING = "converting"
    PAUSED = "paused"
    DONE = "done"
    ERROR = "error"


ENDED = frozenset({State.DONE, State.ERROR})
_MOVING = frozenset({State.QUEUED, State.RESOLVING, State.DOWNLOADING, State.VERIFYING, State.CONVERTING})
TRANSITIONS: dict[State, frozenset[State]] = {
    **{state: _MOVING | ENDED | {State.PAUSED} for state in _MOVING},
    State.PAUSED: frozenset({State.QUEUED, State.ERROR}),
    State.DONE: frozenset(),
    State.ERROR: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that one event tells. `phase` is the state, or `stalled` / `rateLimited` while downloading.

    `queue_position` counts from 1 those that wait for their turn.
    """

    transfer_id: str
    kind: str
    asset_id: str
    state: State
    phase: str
    seq: int = 0
    progress: int = 0
    bytes_downloaded: int = 0
    resumed_bytes: int = 0
    total_bytes: int | None = None
    speed: float | None = None
    eta_seconds: float | None = None
    file: str | None = None
    until: str | None = None
    queue_position: int | None = None
    error: str | None = None
    error_params: dict[str, Any] = field(default_factory=dict)
    error_details: Any | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def wire(self, language: Language) -> dict[str, Any]:
        """The event's data as the contract has it."""
        status = self.state.value if self.ended else "downloading"
        body: dict[str, Any] = {
            f"{self.kind}Id": self.asset_id,
            "downloadId": self.transfer_id,
            "status": status,
            "phase": self.phase,
            "progress": self.progress,
            "bytesDownloaded": self.bytes_downloaded,
            "totalBytes": self.total_bytes,
            "speed": self.speed,
            "etaSeconds": self.eta_seconds,
            "file": self.file,
            "resumedBytes": self.resumed_bytes,
        }
        if self.until is not None:
            body["until"] = self.until
        if self.queue_position is not None:
            body["queue"] = {"position": self.queue_position}
        if self.error is not None:
            body["error"] = self.error
            body["message"] = translate(f"error.{self.error}", language, **{"id": self.asset_id, **self.error_params})
            if self.error_details is not None:
                body["details"] = self.error_details
        return body


class Transfers:
    """The transfers of this server. Live figures are in memory, endings and a recent figure in the database."""

    def __init__(self, database: Database, events: EventLog, registry: Registry) -> None:
        self._database = database
        self._events = events
        self._registry = registry
        self._guard = threading.RLock()
        self._live: dict[str, Snapshot] = {}
        self._persisted_at: dict[str, float] = {}

    def begin(self, session: Session, kind: str, asset_id: str, origin: str, asset: dict[str, Any]) -> Snapshot:
        """Open a transfer and put its asset (fields in `asset`) into the registry as `downloading`."""
        snapshot = Snapshot(new_id(), kind, asset_id, State.QUEUED, State.QUEUED.value, seq=_next_seq(0))
        row = TransferRow(
            id=snapshot.transfer_id,
            kind=kind,
            asset_id=asset_id,
            origin=origin,
            state=snapshot.state,
            phase=snapshot.phase,
            error_params={},
            last_event_id=snapshot.seq,
            created_at=now(),
        )
        session.add(row)
        session.flush()
        self._registry.records.keep(session, row)
        self._registry.put(session, kind, asset_id, status="downloading", progress=0, error=None, **asset)
        after_commit(session, lambda: self._publish(snapshot))
        return snapshot

    def adopt(self, transfer_id: str) -> Snapshot:
        """Take a transfer that a former server left unfinished into memory again."""
        with self._database.read() as session:
            snapshot = _snapshot(session.get_one(TransferRow, transfer_id))
        self._publish(replace(snapshot, seq=_next_seq(snapshot.seq)))
        return snapshot

    def unfinished(self, origin: str) -> list[Snapshot]:
        """Transfers of `origin` that have not ended, oldest first."""
        query = select(TransferRow).where(TransferRow.origin == origin, TransferRow.state.not_in(list(ENDED)))
        with self._database.read() as session:
            return [_snapshot(row) for row in session.scalars(query.order_by(TransferRow.created_at)).all()]

    def latest(self, kind: str, asset_id: str) -> Snapshot | None:
        """The newest transfer of an asset, with its live figures; None when nothing was ever asked to arrive."""
        query = select(TransferRow).where(TransferRow.kind == kind, TransferRow.asset_id == asset_id)
        with self._database.read() as session:
            row = session.scalars(query.order_by(TransferRow.created_at.desc(), TransferRow.id).limit(1)).first()
            if row is None:
                return None
        return self.get(row.id)

    def not_arrived(self) -> list[Snapshot]:
        """The newest transfer of every asset that is on its way or did not arrive, oldest first."""
        query = select(TransferRow).join(
            AssetRow, (AssetRow.kind == TransferRow.kind) & (AssetRow.id == TransferRow.asset_id)
        )
        query = query.where(AssetRow.status.in_(("downloading", "error")))
        newest: dict[tuple[str, str], Snapshot] = {}
        with self._database.read() as session:
            for row in session.scalars(query.order_by(TransferRow.created_at)).all():
                newest[row.kind, row.asset_id] = _snapshot(row)
        with self._guard:
            return [one if one.ended else self._live.get(one.transfer_id, one) for one in newest.values()]

    def get(self, transfer_id: str) -> Snapshot:
        """A transfer as it is now."""
        with self._database.read() as session:
            stored = _snapshot(session.get_one(TransferRow, transfer_id))
        with self._guard:
            live = self._live.get(transfer_id)
        return live if live is not None and not stored.ended else stored

    def current(self, transfer_id: str) -> Snapshot | None:
        """The live snapshot of a transfer that has not ended, or None."""
        with self._guard:
            return self._live.get(transfer_id)

    def progress(self, transfer_id: str, **figures: Any) -> None:
        """New figures of a living transfer. `progress` only ever grows and stays below 100 before the end."""
        with self._guard:
            before = self._live.get(transfer_id)
            if before is None:
                return
            if before.total_bytes is not None:
                figures.pop("total_bytes", None)
            after = replace(before, **figures)
            if after.total_bytes:
                part = min(99, after.bytes_downloaded * 100 // after.total_bytes)
                after = replace(after, progress=max(before.progress, part))
            after = replace(after, seq=_next_seq(before.seq))
            # What a client has seen of the percentage must outlive this server, so it is written before it is told.
            moved = after.state != before.state or after.progress != before.progress
        if moved or time.monotonic() - self._persisted_at.get(transfer_id, 0.0) >= PERSIST_EVERY_SECONDS:
            self._persist(after)
        self._publish(after)

    def enter(self, transfer_id: str, state: State) -> None:
        """Move a living transfer to another state that is not an end. Raises `InvalidState`."""
        with self._guard:
            before = self._live.get(transfer_id)
        if before is None or state not in TRANSITIONS[before.state]:
            raise InvalidState(details={"state": before.state if before else "ended"})
        quiet = {"speed": None, "eta_seconds": None, "until": None, "queue_position": None}
        self.progress(transfer_id, state=state, phase=state.value, **quiet)

    def finish(self, transfer_id: str, **asset: Any) -> None:
        """The asset has arrived, whole; `asset` are the last facts of it."""
        self._end(transfer_id, State.DONE, None, {}, None, {"status": "ready", **asset})

    def fail(
        self, transfer_id: str, error: str, params: dict[str, Any] | None = None, details: Any | None = None
    ) -> None:
        """The transfer ended without the asset; `error` is the code that says why."""
        self._end(
            transfer_id,
            State.ERROR,
            error,
            params or {},
            details,
            {"status": "error", "error": error, "progress": None},
        )

    async def events(self, snapshot: Snapshot, last_id: int | None, language: Language) -> AsyncIterator[ServerEvent]:
        """The stream of a transfer from now on: a snapshot first, then live; ends after the ending."""
        topic = _topic(snapshot)
        subscription = self._events.subscribe([topic])
        try:
            present = await run_in_threadpool(self.get, snapshot.transfer_id)
            # An id that is ahead of ours is none of this stream's (a clock was put back): begin anew.
            sent = last_id if last_id is not None and last_id <= present.seq else 0
            if present.seq > sent or present.ended:
                yield ServerEvent(present.wire(language), str(present.seq))
                sent = present.seq
            while not present.ended:
                try:
                    event = await subscription.next(30)
                except Lagged:
                    # Every event is a whole snapshot: the newest makes up for those that were missed.
                    self._events.unsubscribe(subscription)
                    subscription = self._events.subscribe([topic])
                    present = await run_in_threadpool(self.get, snapshot.transfer_id)
                else:
                    if event is None:
                        continue
                    present = event.data["snapshot"]
                if present.seq > sent:
                    yield ServerEvent(present.wire(language), str(present.seq))
                    sent = present.seq
        finally:
            self._events.unsubscribe(subscription)

    def _end(
        self,
        transfer_id: str,
        state: State,
        error: str | None,
        params: dict[str, Any],
        details: Any,
        asset: dict[str, Any],
    ) -> None:
        with self._database.write() as session:
            row = session.get_one(TransferRow, transfer_id)
            if State(row.state) in ENDED:
                return
            with self._guard:
                before = self._live.get(transfer_id) or _snapshot(row)
            after = replace(
                before,
                state=state,
                phase=state.value,
                seq=_next_seq(max(before.seq, row.last_event_id)),
                progress=100 if state is State.DONE else before.progress,
                bytes_downloaded=before.total_bytes or before.bytes_downloaded
                if state is State.DONE
                else before.bytes_downloaded,
                speed=None,
                eta_seconds=None,
                file=None,
                until=None,
                queue_position=None,
                error=error,
                error_params=params,
                error_details=details,
            )
            _store(row, after)
            row.finished_at = now()
            self._registry.records.keep(session, row)
            self._registry.put(session, row.kind, row.asset_id, **asset)
            self._events.append(
                session,
                "downloads",
                "ended",
                {"kind": row.kind, "id": row.asset_id, "status": state.value, "error": error},
            )
            after_commit(session, lambda: self._publish(after))

    def _persist(self, snapshot: Snapshot) -> None:
        with self._database.write() as session:
            row = session.get(TransferRow, snapshot.transfer_id)
            if row is None or State(row.state) in ENDED:
                return
            moved = row.state != snapshot.state
            _store(row, snapshot)
            asset = session.get(AssetRow, (snapshot.kind, snapshot.asset_id))
            if asset is not None:
                asset.progress = snapshot.progress
                asset.size_bytes = snapshot.total_bytes if asset.size_bytes is None else asset.size_bytes
            for kept in (row, asset) if moved else ():
                if kept is not None:
                    self._registry.records.keep(session, kept)
        self._persisted_at[snapshot.transfer_id] = time.monotonic()

    def _publish(self, snapshot: Snapshot) -> None:
        with self._guard:
            known = self._live.get(snapshot.transfer_id)
            if known is not None and known.seq >= snapshot.seq:
                return
            if snapshot.ended:
                self._live.pop(snapshot.transfer_id, None)
                self._persisted_at.pop(snapshot.transfer_id, None)
            else:
                self._live[snapshot.transfer_id] = snapshot
        self._events.publish(Event(None, _topic(snapshot), "progress", {"snapshot": snapshot}))


def _topic(snapshot: Snapshot) -> str:
    return f"downloads:{snapshot.transfer_id}"


def _next_seq(seq: int) -> int:
    return max(seq + 1, time.time_ns() // 1_000_000)


def _snapshot(row: TransferRow) -> Snapshot:
    return Snapshot(
        transfer_id=row.id,
        kind=row.kind,
        asset_id=row.asset_id,
        state=State(row.state),
        phase=row.phase,
        seq=row.last_event_id,
        progress=row.progress,
        bytes_downloaded=row.bytes_downloaded,
        resumed_bytes=row.resumed_bytes,
        total_bytes=row.total_bytes,
        error=row.error,
        error_params=row.error_params,
        error_details=row.error_details,
    )


def _store(row: TransferRow, snapshot: Snapshot) -> None:
    row.state = snapshot.state
    row.phase = snapshot.phase
    row.progress = snapshot.progress
    row.bytes_downloaded = snapshot.bytes_downloaded
    row.resumed_bytes = snapshot.resumed_bytes
    row.total_bytes = snapshot.total_bytes
    row.error = snapshot.error
    row.error_params = snapshot.error_params
    row.error_details = snapshot.error_details
    row.last_event_id = snapshot.seq
