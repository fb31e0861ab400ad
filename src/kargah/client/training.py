"""Training and what was measured: runs, their analysis, and new ones out of old ones."""

import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from kargah.client import routes
from kargah.client.connection import Connection
from kargah.client.errors import StreamFailed
from kargah.client.holdings import PAGE_SIZE, reference
from kargah.client.records import Asset
from kargah.client.run_records import (
    AdoptedRuns,
    Comparison,
    Job,
    JobStatus,
    RunEvent,
    RunState,
    TrainingStatus,
    WholeQueue,
)
from kargah.client.saving import save
from kargah.client.streams import follow_as, run_ended
from kargah.client.training_config import TrainingConfig

Metric = Literal["loss", "valLoss", "accuracy", "throughput", "learningRate"]


class Analysis:
    """`client.analysis`: the history of runs, curves, comparison, export. A run is named by its id or its job's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def jobs(
        self,
        *,
        status: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
        q: str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[Job]:
        """Runs, newest first, asked for page by page as they are read. `model` finds base and teacher."""
        states = status if status is None or isinstance(status, str) else ",".join(status)
        query = {"status": states, "model": model, "dataset": dataset, "q": q}
        return self._connection.pages(routes.JOBS, Job, query, page_size)

    def status(
        self,
        run_id: str,
        *,
        max_points: int | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> JobStatus:
        """A run with its curves between two steps (both included), sampled down to `max_points`, minima and maxima
        kept."""
        query = {"maxPoints": max_points, "from": first_step, "to": last_step}
        return self._connection.data(routes.JOB, JobStatus, query=query, run_id=run_id)

    def compare(self, run_ids: Sequence[str], metric: Metric = "loss", *, max_points: int | None = None) -> Comparison:
        """One curve of several runs on one axis of steps."""
        query = {"runs": ",".join(run_ids), "metric": metric, "maxPoints": max_points}
        return self._connection.data(routes.COMPARE, Comparison, query=query)

    def export(
        self, run_id: str, format: Literal["csv", "parquet", "json"] = "csv", *, to: str | os.PathLike[str] = "."
    ) -> Path:
        """Every step of a run as a file; in a folder, under the run's name. Returns the file.

        What stood there is replaced by the whole file or not at all. Raises `NotFound`, `OSError`.
        """
        return save(self._connection, routes.EXPORT.at(run_id=run_id), {"format": format}, to)


class Runs:
    """`client.runs`: start, steer and watch. A run is named by its id or its job's."""

    def __init__(self, connection: Connection, analysis: Analysis) -> None:
        self._connection = connection
        self._analysis = analysis

    def start(
        self,
        base_model: Asset | str,
        datasets: Sequence[Asset | str],
        *,
        teacher_model: Asset | str | None = None,
        name: str | None = None,
        task: str | None = None,
        config: TrainingConfig | None = None,
    ) -> RunState:
        """Put a run into the queue: models and checkpoints as base or teacher, data sets that are here.

        Raises `Refused`, and `Conflict` (`ASSET_NOT_READY`); then nothing started. Never asked twice by itself, so that
        no run starts twice: after `AnswerLost` look at `list`.
        """
        named = [datasets] if isinstance(datasets, str | Asset) else datasets
        body = {"baseModel": reference(base_model), "datasets": [reference(dataset) for dataset in named]}
        body |= {"teacherModel": reference(teacher_model)} if teacher_model is not None else {}
        body |= {key: value for key, value in (("name", name), ("task", task)) if value is not None}
        if config is not None:
            body["config"] = config.model_dump(mode="json", by_alias=True, exclude_none=True)
        return self._connection.data(routes.START_RUN, RunState, body=body)

    def adopt(self, path: str, ticket: str, *, move: bool = False) -> AdoptedRuns:
        """Let the server take over runs trained without it: a run directory, or a folder of them, on its machine.

        `ticket` is the word of a ticket in its data directory, as `kargah runs adopt` writes it: it shows that whoever
        asks may write there. Raises `NotPermitted`, and `Refused` where there is no run.
        """
        body = {"path": path, "ticket": ticket, "move": move}
        return self._connection.data(routes.ADOPT_RUNS, AdoptedRuns, body=body)

    def clone(
        self,
        run_id: str,
        *,
        base_model: Asset | str | None = None,
        datasets: Sequence[Asset | str] | None = None,
        teacher_model: Asset | str | None = None,
        name: str | None = None,
        task: str | None = None,
        config: TrainingConfig | None = None,
    ) -> RunState:
        """Plan a run afresh as another one was asked for, with what is named here in place of the old. A field of
        `config` that was set to None takes the server's default back. Raises what `start` raises, and `NotFound`."""
        body: dict[str, Any] = {"baseModel": reference(base_model)} if base_model is not None else {}
        if datasets is not None:
            named = [datasets] if isinstance(datasets, str | Asset) else datasets
            body["datasets"] = [reference(dataset) for dataset in named]
        body |= {"teacherModel": reference(teacher_model)} if teacher_model is not None else {}
        body |= {key: value for key, value in (("name", name), ("task", task)) if value is not None}
        if config is not None:
            body["config"] = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return self._connection.data(routes.CLONE_RUN, RunState, body=body, run_id=run_id)

    def list(
        self,
        *,
        status: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
        q: str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[Job]:
        """The same as `client.analysis.jobs`."""
        return self._analysis.jobs(status=status, model=model, dataset=dataset, q=q, page_size=page_size)

    def status(self, run_id: str, *, max_points: int | None = None) -> TrainingStatus:
        """A run with curves, log, its attempt and its place in the queue."""
        return self._connection.data(routes.RUN, TrainingStatus, query={"maxPoints": max_points}, run_id=run_id)

    def stream(self, run_id: str, after: str | None = None) -> Generator[RunEvent, None, None]:
        """Events of a run: a snapshot, or what came behind the event `after`, then live, up to the final state.
        Closing it stops only the watching."""
        return follow_as(RunEvent, self._connection, routes.RUN_STREAM.at(run_id=run_id), {}, run_ended, after)

    def wait(self, run_id: str) -> TrainingStatus:
        """A run once it was completed or stopped; a paused one is waited for. Raises `StreamFailed` for one that
        failed, with its code."""
        for _ in self.stream(run_id):
            pass
        ended = self.status(run_id)
        if ended.status == "failed":
            raise StreamFailed(ended.error or "INTERNAL", ended.message or "")
        return ended

    def pause(self, run_id: str) -> RunState:
        """Let a run write a checkpoint and leave the machine. Raises `Conflict` (`INVALID_STATE`)."""
        return self._connection.data(routes.PAUSE_RUN, RunState, run_id=run_id)

    def resume(self, run_id: str) -> RunState:
        """Put a paused run into the queue again. Raises `Conflict` (`INVALID_STATE`)."""
        return self._connection.data(routes.RESUME_RUN, RunState, run_id=run_id)

    def stop(self, run_id: str, *, force: bool = False) -> RunState:
        """End a run; if it trains, with a checkpoint; with `force` at once, as its last checkpoint left it.

        Raises `Conflict` (`INVALID_STATE`).
        """
        query = {"force": "true"} if force else None
        return self._connection.data(routes.STOP_RUN, RunState, query=query, run_id=run_id)

    def queue(self) -> WholeQueue:
        """The runs that wait, in their order, what each waits for, and what there is for runs."""
        return self._connection.data(routes.QUEUE, WholeQueue)

    def move(self, run_id: str, position: int) -> WholeQueue:
        """Give a waiting run another place, from 1. Raises `Conflict` (`INVALID_STATE`) when it does not wait."""
        return self._connection.data(routes.MOVE_RUN, WholeQueue, body={"position": position}, run_id=run_id)
