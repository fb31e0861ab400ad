"""What crosses HTTP about single checkpoints: lineage, restoring, cloning, pinning and pruning."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from kargah.assets.schemas import Asset
from kargah.ground.web.envelope import Body, Wire
from kargah.runs.schemas import AssetRef, ConfigBody

RunName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
RunId = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class CheckpointFile(Wire):
    """A file of a checkpoint. `training` says that only a run that goes on needs it."""

    name: str
    size_bytes: int
    digest: str
    training: bool


class ModelOrigin(Wire):
    """The base or teacher of a run, with the commit it was at."""

    id: str
    kind: str
    revision: str | None


class DatasetOrigin(Wire):
    """A data set of a run; `version` is the hash of its contents."""

    id: str
    version: str | None


class Descendant(Wire):
    """A run made from a checkpoint; `relation` is `restore`, `base` or `teacher`."""

    run_id: str
    name: str
    status: str
    relation: str


class CheckpointDetails(Asset):
    """A checkpoint with its lineage. `holders` use it (`run:<id>`, `endpoint:<name>`); `spec` is its run's, frozen,
    without the places of files; `versions` are those of the libraries it was trained with."""

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


class RestoreBody(Body):
    """A run that goes on from a checkpoint. Without a name it takes the checkpoint's."""

    name: RunName | None = None


class CloneBody(Body):
    """What is to differ from the run that is cloned. In `config` a null takes the default back, and what is not named
    stays as it was; a null for `teacherModel` leaves the teacher out, a null for `config` takes all defaults back."""

    base_model: AssetRef | None = None
    datasets: Annotated[list[AssetRef], Field(min_length=1, max_length=16)] | None = None
    teacher_model: AssetRef | None = None
    name: RunName | None = None
    task: Annotated[str, StringConstraints(min_length=1, max_length=60)] | None = None
    config: ConfigBody | None = None


class PinBody(Body):
    """Whether a checkpoint stays whatever the limits say."""

    pinned: bool


class PruneBody(Body):
    """Which checkpoints to keep of each run, or of one run: the newest `keepLast`, and the best if `keepBest`."""

    run_id: RunId | None = None
    keep_last: Annotated[int, Field(ge=0, le=1_000_000)]
    keep_best: bool = True
    dry_run: bool = False


class RemovedCheckpoint(Wire):
    """A checkpoint that is gone, or would be."""

    checkpoint_id: str
    run_id: str
    step: int
    size_bytes: int


class Pruned(Wire):
    """What a policy removed, or would remove, how many checkpoints are left, and the bytes that the disk got back."""

    removed: list[RemovedCheckpoint]
    kept: int
    freed_bytes: int
