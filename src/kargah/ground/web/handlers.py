"""Every error becomes the envelope: ours by their code, the framework's by what they mean, the rest as INTERNAL."""

import logging
import sqlite3

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from kargah.ground.errors import (
    BadRequest,
    DiskFull,
    Internal,
    KargahError,
    MethodNotAllowed,
    NotFound,
    ValidationFailed,
)
from kargah.ground.problems import problems_of
from kargah.ground.web.envelope import failure, language_of

log = logging.getLogger(__name__)


def install_handlers(app: FastAPI) -> None:
    """Make `app` answer every error in the envelope."""
    app.add_exception_handler(KargahError, _ours)
    app.add_exception_handler(RequestValidationError, _rejected)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, KargahError)
    return failure(error, language_of(request))


async def _rejected(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if any(problem["type"] == "json_invalid" for problem in error.errors()):
        return failure(ValidationFailed(("body", "problem.json", {})), language_of(request))
    return failure(problems_of(list(error.errors())), language_of(request))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, KargahError):
        # FastAPI takes whatever ends the reading of a body for a broken body; ours says what it was.
        return failure(error.__cause__, language_of(request))
    known: dict[int, KargahError] = {404: NotFound(), 405: MethodNotAllowed(method=request.method)}
    ours = known.get(error.status_code, BadRequest() if error.status_code < 500 else Internal())
    if isinstance(ours, BadRequest):
        ours = ValidationFailed(("body", "problem.invalid", {}))
    answer = failure(ours, language_of(request))
    if error.headers and "allow" in {name.lower() for name in error.headers}:
        answer.headers["Allow"] = next(value for name, value in error.headers.items() if name.lower() == "allow")
    return answer


async def _database(request: Request, error: Exception) -> Response:
    assert isinstance(error, OperationalError)
    cause = error.orig
    if isinstance(cause, sqlite3.OperationalError) and "full" in str(cause):
        return failure(DiskFull(), language_of(request))
    return await _unexpected(request, error)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected error on %s %s", request.method, request.url.path, exc_info=error)
    return failure(Internal(), language_of(request))
