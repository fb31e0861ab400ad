"""Errors of the runs room, and the codes a training program may leave in its `exit.json`."""

from kargah.ground.errors import BadRequest, Conflict, KargahError, NotFound


class RunNotFound(NotFound):
    code = "RUN_NOT_FOUND"


class CheckpointNotFound(NotFound):
    code = "CHECKPOINT_NOT_FOUND"


class NoSuchFile(NotFound):
    code = "FILE_NOT_FOUND"


class TaskNotSupported(BadRequest):
    """The model or the data cannot serve the task."""

    code = "TASK_NOT_SUPPORTED"


class NoLabels(BadRequest):
    """The data set has no label column, or none was mapped."""

    code = "NO_LABELS"


class SingleClass(BadRequest):
    code = "SINGLE_CLASS"


class NotEnoughRows(BadRequest):
    code = "NOT_ENOUGH_ROWS"


class TrainingColumnNotFound(BadRequest):
    code = "COLUMN_NOT_FOUND"


class UnknownLabel(BadRequest):
    """A label of the validation rows that no training row has: `label`."""

    code = "UNKNOWN_LABEL"


class TeacherMismatch(BadRequest):
    """The teacher's labels are not the data's."""

    code = "TEACHER_MISMATCH"


class ModelDamaged(Conflict):
    """The files of a model are not what they were when it arrived."""

    code = "MODEL_DAMAGED"


class DataDamaged(Conflict):
    """The files of a data set are not what they were when it arrived."""

    code = "DATA_DAMAGED"


class ComputeMissing(KargahError):
    """The training part is not installed on this machine."""

    code, status = "COMPUTE_MISSING", 400


EXIT_CODES = (
    "SPEC_INVALID",
    "MODEL_DAMAGED",
    "TOKENIZER_DAMAGED",
    "DATA_DAMAGED",
    "EMPTY_DATA",
    "COLUMN_NOT_FOUND",
    "UNKNOWN_LABEL",
    "SINGLE_CLASS",
    "TOO_MANY_LABELS",
    "TEACHER_MISMATCH",
    "NON_FINITE_LOSS",
    "OUT_OF_MEMORY",
    "DISK_FULL",
    "NOT_SUPPORTED",
    "INTERNAL",
    "RUN_LOST",
)
