"""The one shape of every JSON answer: `{"ok": true, "data": …}` or `{"ok": false, "error", "message", "details"}`."""

from typing import Any, ClassVar, Generic, Literal, TypeVar
from urllib.parse import quote

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from kargah.ground.errors import KargahError
from kargah.text.languages import Language, from_accept_language

T = TypeVar("T")


class Wire(BaseModel):
    """Base of what leaves over HTTP: camelCase names."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Body(BaseModel):
    """Base of what comes in: camelCase names, unknown fields rejected, no guessing between types."""

    model_config: ClassVar[ConfigDict] = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class Ok(Wire, Generic[T]):
    """A good answer."""

    ok: Literal[True] = True
    data: T


class Page(Wire):
    """Where a long list goes on."""

    next: str | None
    total: int


class OkPage(Ok[T], Generic[T]):
    """A good answer that is one page of a long list."""

    page: Page


class Problem(Wire):
    """One field of a rejected body."""

    field: str
    problem: str


class Failure(Wire):
    """A refusal or a failure."""

    ok: Literal[False] = False
    error: str
    message: str
    details: list[Problem] | dict[str, Any] | None = None


def ok(data: Any, status: int = 200, **beside: Any) -> Response:
    """A good answer; `beside` stands next to `data` (`page`, `summary`). Pydantic models are written by alias."""
    return json_response({"ok": True, "data": data, **beside}, status)


def failure(error: KargahError, language: Language) -> Response:
    """The answer that tells of `error` in `language`."""
    body: dict[str, Any] = {"ok": False, "error": error.code, "message": error.message(language)}
    details = error.details_in(language)
    if details is not None:
        body["details"] = details
    headers = {"Retry-After": str(error.retry_after_seconds)} if error.retry_after_seconds else {}
    return json_response(body, error.status, headers)


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """UTF-8 JSON with Persian letters as they are."""
    return Response(orjson.dumps(body, default=_model), status, headers, media_type="application/json")


def attachment(name: str) -> dict[str, str]:
    """The header that names a file to save; Persian names stand in `filename*` (RFC 6266)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in name)
    return {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"}


def language_of(request: Request) -> Language:
    """The language of the person who asks."""
    return from_accept_language(request.headers.get("accept-language"))


def _model(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"not JSON: {type(value)}")
