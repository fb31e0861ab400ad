"""What the server answers, as records: snake_case attributes, times that know their zone, ids as text.

A field that this version does not know stays on the record under its name on the wire, so a newer server's answers are
read whole. Words such as states and kinds are plain text for the same reason; the contract lists them.
"""

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Cell = str | int | float | bool | None
Metrics = dict[str, int | float | None]


class Record(BaseModel):
    """Base of all."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow", frozen=True)

    def wire(self) -> dict[str, Any]:
        """What the server said, under its names."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Health(Record):
    """The state of the server."""

    status: str
    version: str
    database: str
    schema_revision: str
    offline: bool
    compute_installed: bool


class ConfiguredEndpoint(Record):
    """A hub endpoint of the server's settings; `number` counts from 1 in the order they are tried."""

    number: int
    url: str
    has_token: bool
    is_default: bool


class TestedEndpoint(ConfiguredEndpoint):
    """An endpoint after its test. `failed_step` is `proxy`, `dns`, `tcp`, `tls`, `http` or `hub`, or None.

    `latency_ms` is of a call of the API, `bytes_per_second` of a small file.
    """

    __test__ = False

    ok: bool
    failed_step: str | None
    reason: str | None
    message: str
    uses_proxy: bool | None
    latency_ms: float | None
    bytes_per_second: int | None


class Asset(Record):
    """A model, a data set or a checkpoint. `status` is `available` (approved, not here), `downloading`, `ready` or
    `error` (then `error` is the code). A checkpoint has `run_id`, `step`, `epoch`, `metrics`, `best`, `last`, `pinned`.
    What was imported has `imported_from` and `verified` (`pinned`, `manifest`, `hub`, `unproved`)."""

    id: str
    name: str
    kind: str
    size: str | None
    size_bytes: int | None
    status: str
    source: str
    downloaded_at: AwareDatetime | None
    progress: int | None = None
    error: str | None = None
    licence: str | None = None
    tasks: list[str] = Field(default_factory=list)
    languages: list[str] = Field(default_factory=list)
    parameters: int | None = None
    revision: str | None = None
    description: str | None = None
    huggingface_id: str | None = None
    gated: bool | None = None
    run_id: str | None = None
    step: int | None = None
    epoch: float | None = None
    metrics: Metrics | None = None
    best: bool | None = None
    last: bool | None = None
    pinned: bool | None = None
    created_at: AwareDatetime | None = None
    imported_from: str | None = None
    verified: str | None = None


class AssetSummary(Record):
    """All that is held, counted. `size_bytes` sums the assets; `disk_bytes` counts shared files once."""

    total: int
    ready: int
    size_bytes: int
    size: str
    disk_bytes: int
    by_kind: dict[str, int]


class Freed(Record):
    """What a deletion gave back."""

    id: str
    kind: str
    freed_bytes: int


class ApprovalRequest(Record):
    """A request that an asset be approved; `status` is `open`, `approved` or `declined`. `num_asked` counts how often
    it was made."""

    request_id: str
    id: str
    kind: str
    reason: str | None
    status: str
    note: str | None
    num_asked: int
    created_at: AwareDatetime
    decided_at: AwareDatetime | None


class Withdrawn(Record):
    """A request that is gone."""

    request_id: str
    id: str
    kind: str


class DownloadStarted(Record):
    """A download that was asked for. `started` is false when it is held (`status` is `ready`) or under way already."""

    model_id: str | None = None
    dataset_id: str | None = None
    started: bool
    status: str
    download_id: str | None


class DownloadState(Record):
    """A download after pause, resume, retry or cancel. `freed_bytes` is None when its bytes stay."""

    model_id: str | None = None
    dataset_id: str | None = None
    status: str
    phase: str
    download_id: str
    started: bool = False
    freed_bytes: int | None = None


class QueuePlace(Record):
    """Where a download stands that waits for its turn; 1 is the next."""

    position: int


class UploadStarted(Record):
    """An upload that is with the server and being imported."""

    dataset_id: str
    status: str
    download_id: str


class TransferProgress(Record):
    """One event of a download or an upload. `status` is `downloading`, `done` or `error`; `phase` says more.

    `progress` is 0 to 100 and never falls; `speed` is bytes per second. An error has `error` (the code) and `message`.
    """

    kind: str | None = None
    id: str | None = None
    model_id: str | None = None
    dataset_id: str | None = None
    download_id: str
    status: str
    phase: str
    progress: int
    bytes_downloaded: int
    total_bytes: int | None = None
    speed: float | None = None
    eta_seconds: float | None = None
    file: str | None = None
    resumed_bytes: int = 0
    until: AwareDatetime | None = None
    queue: QueuePlace | None = None
    error: str | None = None
    message: str | None = None
    details: Any | None = None
    event_id: str | None = None


class DatasetColumn(Record):
    """A column. `num_unique` is None when there are more than `num_unique_over` different values."""

    name: str
    type: str
    examples: list[Cell]
    num_nulls: int
    num_unique: int | None
    num_unique_over: int | None


class DatasetSplit(Record):
    """A split."""

    name: str
    num_rows: int


class Finding(Record):
    """Something about the rows that a person should know; `examples` are places in the files."""

    code: str
    severity: str
    count: int
    examples: list[dict[str, Any]]
    message: str
    remedy: str


class SourceFileFacts(Record):
    """A file that the data set was made from."""

    name: str
    split: str | None
    format: str
    size_bytes: int
    num_rows: int


class Dataset(Asset):
    """A data set with its inside. `mapping` is role (`text`, `textPair`, `label`) to column."""

    columns: list[DatasetColumn]
    splits: list[DatasetSplit]
    version: str
    mapping: dict[str, str]
    task: str | None
    labels: list[str]
    findings: list[Finding]
    files: list[SourceFileFacts]


class Rows(Record):
    """Some rows of one split; `total` counts all that match."""

    rows: list[dict[str, Cell]]
    total: int
    split: str
