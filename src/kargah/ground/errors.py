"""The errors a person may meet. Every one has a stable code, an HTTP status and a sentence in fa and en.

    KargahError
    ├── BadRequest 400             a request that can never succeed
    │   ├── ValidationFailed       VALIDATION_FAILED, with details per field
    │   └── NotSupported           NOT_SUPPORTED
    ├── Unauthorized 401           UNAUTHORIZED
    ├── Forbidden 403
    │   └── ForeignOrigin          FOREIGN_ORIGIN
    ├── NotFound 404               NOT_FOUND
    ├── MethodNotAllowed 405       METHOD_NOT_ALLOWED
    ├── Conflict 409               the thing's state forbids it
    │   ├── InvalidState           INVALID_STATE
    │   ├── AssetNotReady          ASSET_NOT_READY
    │   ├── InUse                  IN_USE
    │   └── Offline                OFFLINE
    ├── TooLarge 413               TOO_LARGE
    ├── Internal 500               INTERNAL
    ├── Unavailable 503            UNAVAILABLE, while starting or draining
    ├── DiskFull 507               DISK_FULL
    └── CannotStart                the server or the command refuses to start (never sent over HTTP)
        ├── SettingsInvalid        SETTINGS_INVALID
        ├── HomeInUse              HOME_IN_USE
        └── TokenRequired          TOKEN_REQUIRED

Rooms add their own below these, in their `errors.py`. `message(language)` is the sentence under `error.<CODE>`.
"""

from typing import Any, ClassVar

from kargah.text.languages import Language
from kargah.text.messages import Sentence, translate

Details = dict[str, Any] | list[dict[str, str]]


class KargahError(Exception):
    """Base of all. Keyword arguments fill the sentence's placeholders."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(self, *, details: Details | None = None, **params: Any) -> None:
        super().__init__(f"{self.code} {params}" if params else self.code)
        self.params = params
        self.details = details

    def message(self, language: Language) -> str:
        """The sentence for a person."""
        return translate(f"error.{self.code}", language, **self.params)

    def details_in(self, language: Language) -> Details | None:
        """`details` as they are sent."""
        return self.details


class BadRequest(KargahError):
    code, status = "BAD_REQUEST", 400


class ValidationFailed(BadRequest):
    """A body or a query that is not of the right form; `problems` are `(field, sentence key, params)`."""

    code = "VALIDATION_FAILED"

    def __init__(self, *problems: tuple[str, str, dict[str, Any]], details: Details | None = None) -> None:
        super().__init__(details=details)
        self.problems = problems

    def details_in(self, language: Language) -> Details | None:
        """`details` as the contract has it: a list of `{field, problem}`."""
        if not self.problems:
            return self.details
        return [{"field": field, "problem": translate(key, language, **params)} for field, key, params in self.problems]


def invalid(field: str, problem: str = "problem.invalid", **params: Any) -> ValidationFailed:
    """A `ValidationFailed` for one field; `problem` is the key of a sentence."""
    return ValidationFailed((field, problem, params))


class NotSupported(BadRequest):
    """Something the contract names that this machine or this version cannot do.

    `field` says which, `reason` (a text, or a `Sentence` to be translated) why.
    """

    code = "NOT_SUPPORTED"

    def __init__(self, *, field: str, reason: str | Sentence) -> None:
        super().__init__(field=field, reason=reason)

    def details_in(self, language: Language) -> Details | None:
        """A list of one `{field, problem}`, as for a rejected body."""
        return [{"field": self.params["field"], "problem": translate("problem.notSupported", language, **self.params)}]


class Unauthorized(KargahError):
    code, status = "UNAUTHORIZED", 401


class Forbidden(KargahError):
    code, status = "FORBIDDEN", 403


class ForeignOrigin(Forbidden):
    code = "FOREIGN_ORIGIN"


class NotFound(KargahError):
    code, status = "NOT_FOUND", 404


class MethodNotAllowed(KargahError):
    code, status = "METHOD_NOT_ALLOWED", 405


class Conflict(KargahError):
    code, status = "CONFLICT", 409


class InvalidState(Conflict):
    code = "INVALID_STATE"


class AssetNotReady(Conflict):
    code = "ASSET_NOT_READY"


class InUse(Conflict):
    code = "IN_USE"


class Offline(Conflict):
    code = "OFFLINE"


class TooLarge(KargahError):
    code, status = "TOO_LARGE", 413


class Internal(KargahError):
    code, status = "INTERNAL", 500


class Unavailable(KargahError):
    code, status = "UNAVAILABLE", 503
    retry_after_seconds = 2


class DiskFull(KargahError):
    code, status = "DISK_FULL", 507


class CannotStart(KargahError):
    code = "CANNOT_START"


class SettingsInvalid(CannotStart):
    code = "SETTINGS_INVALID"


class HomeInUse(CannotStart):
    code = "HOME_IN_USE"


class TokenRequired(CannotStart):
    code = "TOKEN_REQUIRED"


def every_error() -> list[type[KargahError]]:
    """Every class of the hierarchy that is loaded, each once."""
    found: list[type[KargahError]] = []
    waiting: list[type[KargahError]] = [KargahError]
    while waiting:
        cls = waiting.pop()
        found.append(cls)
        waiting.extend(cls.__subclasses__())
    return found
