"""Routes of requests for approval: asking, listing, declining, withdrawing. Approving is done in the catalog's file."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import StringConstraints

from kargah.assets.approvals import Approvals, Status
from kargah.assets.catalog import Kind, check_id
from kargah.assets.errors import AlreadyApproved, ApprovalRequestNotFound
from kargah.assets.models import ApprovalRequestRow
from kargah.ground.errors import InvalidState, ValidationFailed
from kargah.ground.ids import rfc3339
from kargah.ground.web.documented import errors
from kargah.ground.web.envelope import Body, Ok, OkPage, Wire, ok
from kargah.ground.web.paging import DEFAULT_LIMIT, Cursor, Limit

GivenId = Annotated[str, StringConstraints(min_length=1, max_length=400)]
Said = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]
"""What a person writes; PostgreSQL keeps no NUL."""


class AskBody(Body):
    """What somebody needs: an id of the hub, and why."""

    id: GivenId
    kind: Kind
    reason: Said | None = None


class DeclineBody(Body):
    """Why not."""

    note: Said | None = None


class ApprovalRequest(Wire):
    """A request. `numAsked` counts how often it was made; `decidedAt` is when it was declined or found approved."""

    request_id: str
    id: str
    kind: Kind
    reason: str | None
    status: Literal["open", "approved", "declined"]
    note: str | None
    num_asked: int
    created_at: str
    decided_at: str | None


class Withdrawn(Wire):
    """A request that is gone."""

    request_id: str
    id: str
    kind: Kind


def build_router(approvals: Approvals) -> APIRouter:
    """The routes, bound to this server's requests."""
    router = APIRouter(tags=["catalog"])
    again: dict[int | str, dict[str, Any]] = {200: {"model": Ok[ApprovalRequest], "description": "asked before"}}

    @router.post(
        "/api/catalog/requests",
        status_code=201,
        response_model=Ok[ApprovalRequest],
        responses={**again, **errors(ValidationFailed, AlreadyApproved)},
    )
    def ask_for_approval(body: AskBody) -> Response:
        """Ask that a model or data set be approved. Asked again while it is open, the same request counts one more."""
        row, is_new = approvals.ask(body.kind, check_id("id", body.id), body.reason)
        return ok(_wire(row), 201 if is_new else 200)

    @router.get(
        "/api/catalog/requests", response_model=OkPage[list[ApprovalRequest]], responses=errors(ValidationFailed)
    )
    def list_requests(
        status: Annotated[Status | None, Query(description="only requests that stand so")] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response:
        """Requests, newest first."""
        rows, page = approvals.listed(status=status, limit=limit, cursor=cursor)
        return ok([_wire(row) for row in rows], page=page)

    @router.post(
        "/api/catalog/requests/{request_id}/decline",
        response_model=Ok[ApprovalRequest],
        responses=errors(ApprovalRequestNotFound, InvalidState, ValidationFailed),
    )
    def decline_request(request_id: str, body: DeclineBody | None = None) -> Response:
        """Decline an open request."""
        return ok(_wire(approvals.decline(request_id, body.note if body else None)))

    @router.delete(
        "/api/catalog/requests/{request_id}",
        response_model=Ok[Withdrawn],
        responses=errors(ApprovalRequestNotFound, InvalidState),
    )
    def withdraw_request(request_id: str) -> Response:
        """Withdraw an open request."""
        row = approvals.withdraw(request_id)
        return ok({"requestId": row.id, "id": row.asset_id, "kind": row.kind})

    return router


def _wire(row: ApprovalRequestRow) -> dict[str, Any]:
    return {
        "requestId": row.id,
        "id": row.asset_id,
        "kind": row.kind,
        "reason": row.reason,
        "status": row.status,
        "note": row.note,
        "numAsked": row.num_asked,
        "createdAt": rfc3339(row.created_at),
        "decidedAt": rfc3339(row.decided_at),
    }
