"""Routes of the runs room: training (section 4 of the contract) and analytics (section 5)."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from kargah.assets.errors import DatasetNotAllowed, ModelNotAllowed
from kargah.assets.schemas import Asset, of_row
from kargah.datasets.errors import TooManyLabels
from kargah.ground.errors import AssetNotReady, DiskFull, InvalidState, NotSupported, ValidationFailed, invalid
from kargah.ground.web.documented import EVENT_STREAM, errors
from kargah.ground.web.envelope import Ok, OkPage, attachment, language_of, ok
from kargah.ground.web.paging import Cursor, Limit
from kargah.ground.web.sse import Drain, end_of_stream, last_event_number, stream
from kargah.metrics import store
from kargah.runs import analytics, schemas
from kargah.runs.errors import (
    ComputeMissing,
    DataDamaged,
    ModelDamaged,
    NoLabels,
    NotEnoughRows,
    RunNotFound,
    SingleClass,
    TaskNotSupported,
    TeacherMismatch,
    TrainingColumnNotFound,
    UnknownLabel,
)
from kargah.runs.models import RunRow
from kargah.runs.service import Runs
from kargah.runs.streams import RunStream

MAX_COMPARED = 50
DEFAULT_POINTS = 2000
MAX_STEP = 2**53

MaxPoints = Annotated[int, Query(alias="maxPoints", ge=2, le=100_000)]


def build_router(runs: Runs, drain: Drain) -> APIRouter:
    """The routes, bound to this server's runs."""
    router = APIRouter()
    streams = RunStream(runs.database, runs.ledger.events, runs.supervisor.capacity)
    known = errors(RunNotFound)
    wished = errors(RunNotFound, InvalidState, DiskFull)

    @router.post(
        "/api/training/start",
        response_model=Ok[schemas.Started],
        responses=errors(
            ValidationFailed,
            NotSupported,
            ModelNotAllowed,
            DatasetNotAllowed,
            AssetNotReady,
            ComputeMissing,
            DataDamaged,
            DiskFull,
            ModelDamaged,
            NoLabels,
            NotEnoughRows,
            SingleClass,
            TaskNotSupported,
            TeacherMismatch,
            TooManyLabels,
            TrainingColumnNotFound,
            UnknownLabel,
        ),
        tags=["training"],
    )
    def start(body: schemas.StartBody) -> Response:
        """Take a run into the queue; what cannot be done is refused here."""
        row = runs.start(body)
        return ok({"runId": row.id, "jobId": row.job_id, "status": "queued"})

    @router.post(
        "/api/training/stop/{run_id}",
        status_code=202,
        response_model=Ok[schemas.RunStatus],
        responses=wished,
        tags=["training"],
    )
    def stop(run_id: str, force: bool = False) -> Response:
        """End a run; if it trains, with a checkpoint. With `force` at once, as its last checkpoint left it."""
        return _wished(runs.stop(run_id, force=force))

    @router.post(
        "/api/training/pause/{run_id}",
        status_code=202,
        response_model=Ok[schemas.RunStatus],
        responses=wished,
        tags=["training"],
    )
    def pause(run_id: str) -> Response:
        """Let a run write a checkpoint and leave the machine."""
        return _wished(runs.pause(run_id))

    @router.post(
        "/api/training/resume/{run_id}",
        status_code=202,
        response_model=Ok[schemas.RunStatus],
        responses=wished,
        tags=["training"],
    )
    def resume(run_id: str) -> Response:
        """Put a paused run into the queue again."""
        return _wished(runs.resume(run_id))

    @router.get("/api/training/queue", response_model=Ok[schemas.WholeQueue], tags=["training"])
    def queue(request: Request) -> Response:
        """The runs that wait, in their order, and what each waits for."""
        with runs.database.read() as session:
            return ok(analytics.whole_queue(session, language_of(request), runs.supervisor.capacity))

    @router.post(
        "/api/training/queue/{run_id}",
        response_model=Ok[schemas.WholeQueue],
        responses=errors(RunNotFound, InvalidState, ValidationFailed),
        tags=["training"],
    )
    def move(request: Request, run_id: str, body: schemas.MoveBody) -> Response:
        """Give a waiting run another place in the queue."""
        runs.move(run_id, body.position)
        with runs.database.read() as session:
            return ok(analytics.whole_queue(session, language_of(request), runs.supervisor.capacity))

    @router.get(
        "/api/training/status/{run_id}", response_model=Ok[schemas.TrainingStatus], responses=known, tags=["training"]
    )
    def training_status(request: Request, run_id: str, max_points: MaxPoints = DEFAULT_POINTS) -> Response:
        """A run with curves, log, its attempt and its place in the queue."""
        with runs.database.read() as session:
            run = runs.get(session, run_id)
            return ok(
                analytics.training_status(session, run, language_of(request), max_points, runs.supervisor.capacity)
            )

    @router.get(
        "/api/training/stream/{run_id}", response_class=Response, responses={**EVENT_STREAM, **known}, tags=["training"]
    )
    def run_stream(request: Request, run_id: str) -> Response:
        """A run's events: a snapshot, then live; closed after the final state."""
        with runs.database.read() as session:
            run = runs.get(session, run_id)
        last = last_event_number(request)
        if streams.has_ended(run.id, last):
            return end_of_stream()
        return stream(streams.of(run.id, last, language_of(request)), drain)

    @router.get("/api/training/assets", response_model=Ok[list[Asset]], responses=known, tags=["training"])
    def list_checkpoints(request: Request, run: Annotated[str | None, Query(alias="runId")] = None) -> Response:
        """Checkpoints that exist on storage, newest first."""
        with runs.database.read() as session:
            run_id = runs.get(session, run).id if run else None
            rows = runs.registry.listed(session, ["checkpoint"], run_id)
        return ok([of_row(row, None, language_of(request)) for row in rows])

    @router.get(
        "/api/analysis/training/jobs",
        response_model=OkPage[list[schemas.Job]],
        responses=errors(ValidationFailed),
        tags=["analysis"],
    )
    def list_jobs(
        request: Request,
        status: str | None = None,
        model: str | None = None,
        dataset: str | None = None,
        q: str | None = None,
        limit: Limit = 1000,
        cursor: Cursor = None,
    ) -> Response:
        """Runs, newest first."""
        with runs.database.read() as session:
            data, page = analytics.list_runs(
                session,
                language_of(request),
                limit=limit,
                cursor=cursor,
                status=status,
                model=model,
                dataset=dataset,
                q=q,
            )
        return ok(data, page=page)

    @router.get(
        "/api/analysis/training/status/{run_id}",
        response_model=Ok[schemas.JobStatus],
        responses=errors(RunNotFound, ValidationFailed),
        tags=["analysis"],
    )
    def job_status(
        request: Request,
        run_id: str,
        max_points: MaxPoints = DEFAULT_POINTS,
        first: Annotated[int | None, Query(alias="from", ge=0, le=MAX_STEP)] = None,
        last: Annotated[int | None, Query(alias="to", ge=0, le=MAX_STEP)] = None,
    ) -> Response:
        """A run with its current values, curves and log."""
        with runs.database.read() as session:
            run = runs.get(session, run_id)
            return ok(analytics.status_of(session, run, language_of(request), max_points, first, last))

    @router.get(
        "/api/analysis/training/compare",
        response_model=Ok[schemas.Comparison],
        responses=errors(RunNotFound, ValidationFailed),
        tags=["analysis"],
    )
    def compare(
        ids: Annotated[str, Query(alias="runs", description="run ids, comma-separated")],
        metric: Literal["loss", "valLoss", "accuracy", "throughput", "learningRate"] = "loss",
        max_points: MaxPoints = DEFAULT_POINTS,
    ) -> Response:
        """Curves of several runs on one axis."""
        named = [part.strip() for part in ids.split(",") if part.strip()]
        if not named:
            raise invalid("runs", "problem.missing")
        if len(named) > MAX_COMPARED:
            raise invalid("runs", "problem.tooMany", bound=MAX_COMPARED)
        with runs.database.read() as session:
            rows = [runs.get(session, run_id) for run_id in named]
            return ok(analytics.compare(session, rows, metric, max_points))

    @router.get(
        "/api/analysis/training/export/{run_id}",
        response_class=Response,
        responses={200: {"description": "every step, as a file"}, **errors(RunNotFound, ValidationFailed)},
        tags=["analysis"],
    )
    def export(run_id: str, format: Literal["csv", "parquet", "json"] = "csv") -> Response:
        """Every step of a run as a file, nothing sampled away."""
        with runs.database.read() as session:
            run = runs.get(session, run_id)
        headers = attachment(f"{run.name}.{format}")
        if format == "parquet":
            return Response(
                analytics.export_parquet(_steps(runs, run)),
                headers=headers,
                media_type="application/vnd.apache.parquet",
            )
        if format == "csv":
            return StreamingResponse(
                analytics.export_csv(_steps(runs, run)), headers=headers, media_type="text/csv; charset=utf-8"
            )
        return StreamingResponse(
            analytics.export_json(_steps(runs, run)), headers=headers, media_type="application/json"
        )

    return router


def _wished(row: RunRow) -> Response:
    return ok({"runId": row.id, "jobId": row.job_id, "status": row.status}, 202)


def _steps(runs: Runs, run: RunRow) -> Iterator[dict[str, Any]]:
    with runs.database.read() as session:
        yield from store.every_step(session, run.id)
