"""What can go wrong between a program and a server. Sentences of the server come in the client's language.

KargahClientError
├── ApiError                the server answered that it refused or failed: `status`, `code`, `message`, `details`
│   ├── Refused             400, 413: a request that can never succeed
│   ├── NotPermitted        401, 403
│   ├── NotFound            404
│   ├── Conflict            409: the thing's state forbids it
│   ├── ServerFailed        500 and above
│   └── UnexpectedAnswer    what answered does not speak as a Kargah server does
├── ServerUnreachable       nobody answered: `url`
│   └── AnswerLost          the request went out and its answer never came: it may have been done
└── StreamFailed            a stream ended with an error: a download, an upload, a run
"""

from typing import Any


class KargahClientError(Exception):
    """Base of all."""


class ApiError(KargahClientError):
    """The server refused or failed. `code` is stable and for programs, `message` is a sentence for people.

    `details` of `VALIDATION_FAILED` is a list of `{"field", "problem"}`.
    """

    def __init__(self, status: int, code: str, message: str, details: Any | None = None) -> None:
        super().__init__(status, code, message, details)
        self.status = status
        self.code = code
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]{_fields(self.details)}"


class Refused(ApiError):
    """A request that can never succeed: an unknown or forbidden id, a bad field, too large a body."""


class NotPermitted(ApiError):
    """The token is missing, wrong, or not enough for this."""


class NotFound(ApiError):
    """There is no such thing."""


class Conflict(ApiError):
    """The state of the thing forbids it now."""


class ServerFailed(ApiError):
    """The server could not do it, or is not ready."""


class UnexpectedAnswer(ApiError):
    """Something else than a Kargah server of this API answered."""


class ServerUnreachable(KargahClientError):
    """Nobody answered at `url`."""

    def __init__(self, url: str, message: str) -> None:
        super().__init__(url, message)
        self.url = url
        self.message = message

    def __str__(self) -> str:
        return self.message


class AnswerLost(ServerUnreachable):
    """The request was sent and the connection broke before its answer: whether it was done is not known.

    Such a request is never sent again by itself, for it would be done twice. Look first, then ask again.
    """


class StreamFailed(KargahClientError):
    """A download, an upload or a run ended with an error: `code` and `message` as the last event has them."""

    def __init__(self, code: str, message: str, details: Any | None = None) -> None:
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


def api_error(status: int, code: str, message: str, details: Any | None) -> ApiError:
    """The error for an answer that tells of a refusal or a failure."""
    kinds: dict[int, type[ApiError]] = {
        400: Refused,
        401: NotPermitted,
        403: NotPermitted,
        404: NotFound,
        409: Conflict,
        413: Refused,
    }
    kind = kinds.get(status, ServerFailed if status >= 500 else ApiError)
    return kind(status, code, message, details)


def _fields(details: Any) -> str:
    if not isinstance(details, list):
        return ""
    named = [f"{one.get('field')}: {one.get('problem')}" for one in details if isinstance(one, dict)]
    return f" ({'; '.join(named)})" if named else ""
