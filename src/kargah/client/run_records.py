"""Runs as the server answers them: the flat row, a run with its curves and log, comparison, and events."""

from typing import Any

from pydantic import AwareDatetime

from kargah.client.records import Asset, Metrics, Record, TransferProgress


class RunState(Record):
    """A run after it was started, or after a wish."""

    run_id: str
    job_id: str
    status: str


class AdoptedRun(Record):
    """A run that was taken over. `damaged_attempts` are those of whose journals a part could not be read."""

    run_id: str
    job_id: str
    name: str
    status: str
    damaged_attempts: list[int]


class SkippedRun(Record):
    """A directory that was not taken over, and why."""

    path: str
    error: str
    message: str


class AdoptedRuns(Record):
    """What became of run directories that the server was to take over."""

    adopted: list[AdoptedRun]
    skipped: list[SkippedRun]


class Origin(Record):
    """What a run was made from: `restore`, `clone` or `adopt`."""

    kind: str
    run_id: str | None = None
    checkpoint_id: str | None = None


class Job(Record):
    """A run as one row. `status`: `queued`, `preparing`, `running`, `pausing`, `paused`, `stopping`, and the ends
    `completed`, `failed` (with `error` and `message`), `stopped`. `accuracy` is 0 to 1, `throughput` samples a second.

    A value that was NaN or infinite is None and named in `non_finite`; None alone means not measured. `silent_since` is
    set while the program lives but says nothing. The `error` of a paused run is why it was paused.
    """

    id: str
    run_id: str
    job_id: str
    name: str
    status: str
    base_model: str
    datasets: list[str]
    teacher_model: str | None
    task: str
    epoch: float | None
    step: int
    total_steps: int | None
    train_loss: float | None
    val_loss: float | None
    accuracy: float | None
    throughput: float | None
    best_checkpoint: str | None
    last_checkpoint: str | None
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    progress: int
    silent_since: AwareDatetime | None = None
    origin: Origin | None = None
    error: str | None = None
    message: str | None = None
    non_finite: dict[str, str] | None = None


class HistoryRow(Record):
    """One logged step."""

    step: int
    epoch: float | None
    loss: float | None
    val_loss: float | None
    accuracy: float | None
    throughput: float | None
    learning_rate: float | None
    timestamp: AwareDatetime
    non_finite: dict[str, str] | None = None


class LogLine(Record):
    """One line of a run's log; `type` repeats `level`."""

    timestamp: AwareDatetime
    level: str
    type: str
    message: str
    details: Any | None


class JobStatus(Job):
    """A run with its present values, curves, log, and the `config` it trains with (names as on the wire)."""

    metrics: Metrics
    history: list[HistoryRow]
    logs: list[LogLine]
    config: dict[str, Any] | None = None


class Attempt(Record):
    """The newest attempt; `pid` only while it lives on the server's machine."""

    number: int
    pid: int | None
    host: str
    started_at: AwareDatetime


class Queue(Record):
    """Where a waiting run stands and what it waits for: `supervisor` (nothing), `turn`, `slot`, `memory`."""

    position: int
    waits_for: str
    message: str
    needed_bytes: int | None = None
    free_bytes: int | None = None


class QueuedRun(Queue):
    """A run in the queue; `reserved_bytes` is the memory set aside for it once it starts."""

    run_id: str
    job_id: str
    name: str
    base_model: str
    reserved_bytes: int | None


class WholeQueue(Record):
    """The queue in its order, and what there is for runs: how many at once, GPUs, memory of which some is reserved."""

    slots: int
    gpus: int
    memory_bytes: int
    reserved_bytes: int
    running: list[str]
    waiting: list[QueuedRun]


class TrainingStatus(JobStatus):
    """A run with all that, its attempt, and its place in the queue."""

    attempt: Attempt | None
    queue: Queue | None


class CheckpointFile(Record):
    """A file of a checkpoint. `training` says that only a run that goes on needs it."""

    name: str
    size_bytes: int
    digest: str
    training: bool


class ModelOrigin(Record):
    """The base or teacher of a run (`kind` is `model` or `checkpoint`), with the commit it was at."""

    id: str
    kind: str
    revision: str | None


class DatasetOrigin(Record):
    """A data set of a run; `version` is the hash of its contents."""

    id: str
    version: str | None


class Descendant(Record):
    """A run made from a checkpoint; `relation` is `restore`, `base` or `teacher`."""

    run_id: str
    name: str
    status: str
    relation: str


class CheckpointDetails(Asset):
    """A checkpoint with its lineage. `holders` use it (`run:<id>`, `endpoint:<name>`); `spec` is its run's, frozen;
    `versions` are those of the libraries it was trained with."""

    run_name: str | None
    attempt: int | None
    holders: list[str]
    files: list[CheckpointFile]
    spec: dict[str, Any]
    labels: list[str]
    base_model: ModelOrigin | None
    teacher_model: ModelOrigin | None
    datasets: list[DatasetOrigin]
    code_version: str | None
    versions: dict[str, str]
    descendants: list[Descendant]


class RemovedCheckpoint(Record):
    """A checkpoint that a policy removed, or would."""

    checkpoint_id: str
    run_id: str
    step: int
    size_bytes: int


class Pruned(Record):
    """What a policy removed, or would; `kept` counts what is left, `freed_bytes` is what the disk got back."""

    removed: list[RemovedCheckpoint]
    kept: int
    freed_bytes: int


class Curve(Record):
    """One run's values at the steps of a comparison."""

    run_id: str
    name: str
    values: list[float | None]


class Comparison(Record):
    """Curves of several runs on one axis of steps."""

    metric: str
    steps: list[int]
    runs: list[Curve]


class RunEvent(Record):
    """One event of a run. By `type`:

    - `metric`: `step`, `epoch`, `loss`, `learning_rate`, `throughput`, `grad_norm`
    - `evaluation`: `step`, `epoch`, `val_loss`, `accuracy`, `metrics`
    - `checkpoint`: `step`, `epoch`, `checkpoint_id`, `name`, `size_bytes`, `best`, `metrics`
    - `log`: `level`, `message`, `details`
    - `state`: `status`, `final`, `error`
    - `snapshot`: the whole run, as `snapshot`
    - `reset`: the place in the stream was too old; a snapshot follows
    """

    type: str
    event_id: str | None = None
    run_id: str | None = None
    timestamp: AwareDatetime | None = None
    step: int | None = None
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    throughput: float | None = None
    grad_norm: float | None = None
    val_loss: float | None = None
    accuracy: float | None = None
    non_finite: dict[str, str] | None = None
    metrics: Metrics | None = None
    checkpoint_id: str | None = None
    name: str | None = None
    size_bytes: int | None = None
    best: bool | None = None
    level: str | None = None
    message: str | None = None
    details: Any | None = None
    status: str | None = None
    final: bool = False
    error: str | None = None

    @property
    def snapshot(self) -> TrainingStatus | None:
        """The whole run, of an event of type `snapshot`."""
        return TrainingStatus.model_validate(self.wire()) if self.type == "snapshot" else None


class Event(Record):
    """One event of `client.events()`: a `topic` (`runs`, `downloads`, `assets`, `system`), and by its type the same as
    in the stream of the run or of the transfer: `run`, `transfer`. An asset's event has `kind` and `id`."""

    topic: str
    type: str
    event_id: str | None = None
    run_id: str | None = None
    kind: str | None = None
    id: str | None = None
    status: str | None = None
    error: str | None = None

    @property
    def run(self) -> RunEvent | None:
        """The event of a run that this is."""
        return RunEvent.model_validate(self.wire()) if self.topic == "runs" else None

    @property
    def transfer(self) -> TransferProgress | None:
        """The progress of a download or an upload that this is."""
        progresses = self.topic == "downloads" and self.type == "progress"
        return TransferProgress.model_validate(self.wire()) if progresses else None
