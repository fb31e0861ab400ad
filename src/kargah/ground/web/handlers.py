"""Every error becomes the envelope: ours by their code, the framework's by what they mean, the rest as INTERNAL."""

import logging
import sqlite3
from typing import Any

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
from kargah.ground.web.envelope import failure, language_of
from kargah.text.messages import has

log = logging.getLogger(__name__)

# Kinds of pydantic's problems that have a sentence of their own; every other kind is "invalid".
_SENTENCES = {
    "missing": "problem.missing",
    "extra_forbidden": "problem.unknown",
    "json_invalid": "problem.json",
    "greater_than": "problem.greaterThan",
    "greater_than_equal": "problem.atLeast",
    "less_than": "problem.lessThan",
    "less_than_equal": "problem.atMost",
    "finite_number": "problem.finite",
    "string_too_short": "problem.tooShort",
    "string_too_long": "problem.tooLong",
    "too_short": "problem.tooFew",
    "too_long": "problem.tooMany",
    "literal_error": "problem.oneOf",
    "enum": "problem.oneOf",
    "string_type": "problem.string",
    "int_type": "problem.integer",
    "int_parsing": "problem.integer",
    "int_from_float": "problem.integer",
    "float_type": "problem.number",
    "float_parsing": "problem.number",
    "bool_type": "problem.boolean",
    "bool_parsing": "problem.boolean",
    "list_type": "problem.list",
    "model_type": "problem.object",
    "model_attributes_type": "problem.object",
    "dict_type": "problem.object",
}
_PARAMS = {"gt": "bound", "ge": "bound", "lt": "bound", "le": "bound", "expected": "expected"}
_LENGTHS = ("min_length", "max_length")


def install_handlers(app: FastAPI) -> None:
    """Make `app` answer every error in the envelope."""
    app.add_exception_handler(KargahError, _ours)
    app.add_exception_handler(RequestValidationError, _rejected)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(Exception, _unexpected)


def problems_of(errors: list[Any], skip: int = 1) -> ValidationFailed:
    """Pydantic's list of errors as ours; `skip` drops the leading `body` or `query` of each place."""
    found = []
    for error in errors:
        place = ".".join(str(part) for part in error["loc"][skip:]) or str(error["loc"][0] if error["loc"] else "body")
        key = _SENTENCES.get(error["type"], "problem.invalid")
        context = error.get("ctx") or {}
        params = {_PARAMS[name]: value for name, value in context.items() if name in _PARAMS}
        for name in _LENGTHS:
            if name in context:
                params["bound"] = context[name]
        found.append((place, key if has(key, "en") else "problem.invalid", params))
    return ValidationFailed(*found)


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
