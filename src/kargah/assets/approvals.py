"""Requests for approval: what people need and the catalog does not have.

Nobody approves here: what is approved stands in the catalog's files, and a request for what stands there is approved
by that. The server reads these files once, at its start, which is when `settle` looks. A decision is kept with its
time, also when the entry leaves the catalog again: whoever still needs it asks anew.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from kargah.assets.catalog import Catalog, Kind
from kargah.assets.errors import AlreadyApproved, ApprovalRequestNotFound
from kargah.assets.models import ApprovalRequestRow
from kargah.assets.records import Records
from kargah.ground.db import Database
from kargah.ground.errors import InvalidState
from kargah.ground.events import EventLog
from kargah.ground.ids import new_id, now
from kargah.ground.web.paging import decode_place, encode_cursor


class Status(StrEnum):
    """Where a request stands."""

    OPEN = "open"
    APPROVED = "approved"
    DECLINED = "declined"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.OPEN: frozenset({Status.APPROVED, Status.DECLINED}),
    # The catalog has the last word.
    Status.DECLINED: frozenset({Status.APPROVED}),
    Status.APPROVED: frozenset(),
}


class Approvals:
    """The requests of this installation."""

    def __init__(self, database: Database, events: EventLog, catalog: Catalog, records: Records) -> None:
        self._database = database
        self._events = events
        self._catalog = catalog
        self._records = records

    def settle(self) -> int:
        """Approve every request whose asset stands in the catalog now. Returns how many these were."""
        approvable = [status for status, following in TRANSITIONS.items() if Status.APPROVED in following]
        query = select(ApprovalRequestRow).where(ApprovalRequestRow.status.in_(approvable))
        with self._database.write() as session:
            rows = session.scalars(query.order_by(ApprovalRequestRow.created_at)).all()
            found = [row for row in rows if self._catalog.find(_kind(row), row.asset_id) is not None]
            for row in found:
                self._decide(session, row, Status.APPROVED)
        return len(found)

    def ask(self, kind: Kind, asset_id: str, reason: str | None) -> tuple[ApprovalRequestRow, bool]:
        """The open request for an asset and whether it is new; one that was open before counts one more.

        Raises `AlreadyApproved` when the catalog has it.
        """
        entry = self._catalog.find(kind, asset_id)
        if entry is not None:
            raise AlreadyApproved(id=asset_id, details={"id": entry.id, "kind": kind})
        reason = (reason or "").strip() or None
        same = select(ApprovalRequestRow).where(
            ApprovalRequestRow.kind == kind,
            ApprovalRequestRow.asset_id == asset_id,
            ApprovalRequestRow.status == Status.OPEN,
        )
        with self._database.write() as session:
            row = session.scalars(same).one_or_none()
            is_new = row is None
            if row is None:
                row = ApprovalRequestRow(
                    id=new_id(), kind=kind, asset_id=asset_id, status=Status.OPEN, num_asked=0, created_at=now()
                )
                session.add(row)
            row.num_asked += 1
            row.reason = row.reason or reason
            session.flush()
            self._records.keep(session, row)
            self._tell(session, row, row.status)
        return row, is_new

    def listed(
        self, *, status: Status | None, limit: int, cursor: str | None
    ) -> tuple[list[ApprovalRequestRow], dict[str, Any]]:
        """Requests newest first, and the page they are. Raises `ValidationFailed` for a cursor that is none."""
        matches: list[ColumnElement[bool]] = [] if status is None else [ApprovalRequestRow.status == status]
        created, key = ApprovalRequestRow.created_at, ApprovalRequestRow.id
        with self._database.read() as session:
            total = session.scalar(select(func.count()).select_from(ApprovalRequestRow).where(*matches)) or 0
            if cursor:
                moment, last_id = decode_place(cursor)
                matches.append(or_(created < moment, and_(created == moment, key < last_id)))
            query = select(ApprovalRequestRow).where(*matches).order_by(created.desc(), key.desc()).limit(limit + 1)
            rows = list(session.scalars(query).all())
        shown = rows[:limit]
        following = encode_cursor(shown[-1].created_at.isoformat(), shown[-1].id) if len(rows) > limit else None
        return shown, {"next": following, "total": total}

    def decline(self, request_id: str, note: str | None) -> ApprovalRequestRow:
        """Decline an open request. Raises `ApprovalRequestNotFound`, `InvalidState` for one that is decided."""
        with self._database.write() as session:
            row = _get(session, request_id)
            row.note = (note or "").strip() or None
            self._decide(session, row, Status.DECLINED)
        return row

    def withdraw(self, request_id: str) -> ApprovalRequestRow:
        """Forget an open request. Raises `ApprovalRequestNotFound`, `InvalidState` for one that is decided."""
        with self._database.write() as session:
            row = _get(session, request_id)
            if row.status != Status.OPEN:
                raise InvalidState(details={"status": row.status})
            session.delete(row)
            self._records.forget(session, row)
            self._tell(session, row, "withdrawn")
        return row

    def _decide(self, session: Session, row: ApprovalRequestRow, status: Status) -> None:
        if status not in TRANSITIONS[Status(row.status)]:
            raise InvalidState(details={"status": row.status})
        row.status = status
        row.decided_at = now()
        session.flush()
        self._records.keep(session, row)
        self._tell(session, row, status)

    def _tell(self, session: Session, row: ApprovalRequestRow, status: str) -> None:
        data = {"requestId": row.id, "kind": row.kind, "id": row.asset_id, "status": status, "numAsked": row.num_asked}
        self._events.append(session, "system", "approval", data)


def _get(session: Session, request_id: str) -> ApprovalRequestRow:
    row = session.get(ApprovalRequestRow, request_id)
    if row is None:
        raise ApprovalRequestNotFound(id=request_id)
    return row


def _kind(row: ApprovalRequestRow) -> Kind:
    return "dataset" if row.kind == "dataset" else "model"
