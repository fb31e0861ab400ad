"""The route by which runs that were trained without this server are taken over."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints

from kargah.ground.errors import ValidationFailed, invalid
from kargah.ground.home import Home
from kargah.ground.web.documented import errors
from kargah.ground.web.envelope import Body, Ok, Wire, language_of, ok
from kargah.runs.adoption import Adoption, Adoptions
from kargah.runs.adoption_tickets import take_ticket
from kargah.runs.errors import PathNotAllowed
from kargah.text.languages import Language


class AdoptBody(Body):
    """A run directory, or a folder of them, on the server's machine; `ticket` is the word of a ticket there."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    move: bool = False
    ticket: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]


class AdoptedRun(Wire):
    """A run that was taken over. `damagedAttempts` are those of whose journals a part could not be read."""

    run_id: str
    job_id: str
    name: str
    status: str
    damaged_attempts: list[int] = Field(default_factory=list)


class SkippedRun(Wire):
    """A directory that was not taken over, and why: `RUN_KNOWN`, `RUN_ALIVE`, `SPEC_INVALID`, `DISK_FULL`."""

    path: str
    error: str
    message: str


class AdoptedRuns(Wire):
    """What became of the directories."""

    adopted: list[AdoptedRun]
    skipped: list[SkippedRun]


def build_router(adoption: Adoption, home: Home) -> APIRouter:
    """The route, bound to this server's data directory."""
    router = APIRouter(tags=["training"])

    @router.post(
        "/api/training/adopt", response_model=Ok[AdoptedRuns], responses=errors(ValidationFailed, PathNotAllowed)
    )
    def adopt(request: Request, body: AdoptBody) -> Response:
        """Take over a run directory, or every one in a folder; only for who can write into the data directory.

        With `move` what was taken over is gone from where it stood. What cannot be taken over is told in `skipped` and
        left as it is.
        """
        path = take_ticket(home.root, body.ticket, body.path, move=body.move)
        if not path.is_dir():
            raise invalid("path", "problem.noRuns")
        done = adoption.adopt(path, move=body.move)
        if not done.adopted and not done.skipped:
            raise invalid("path", "problem.noRuns")
        return ok(as_wire(done, language_of(request)))

    return router


def as_wire(done: Adoptions, language: Language) -> dict[str, Any]:
    """What became of the directories, as it is answered."""
    return {
        "adopted": [
            {
                "runId": one.run.id,
                "jobId": one.run.job_id,
                "name": one.run.name,
                "status": str(one.run.status),
                "damagedAttempts": one.damaged,
            }
            for one in done.adopted
        ],
        "skipped": [
            {"path": str(one.path), "error": one.error.code, "message": one.error.message(language)}
            for one in done.skipped
        ],
    }
