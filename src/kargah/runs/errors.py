"""Errors of the runs room, and the codes a training program may leave in its `exit.json`."""

from kargah.ground.errors import BadRequest, Conflict, Forbidden, KargahError, NotFound
from kargah.text.languages import Language
from kargah.text.messages import translate


class RunNotFound(NotFound):
    code = "RUN_NOT_FOUND"


class CheckpointNotFound(NotFound):
    code = "CHECKPOINT_NOT_FOUND"


class NoSuchFile(NotFound):
    """A checkpoint has no file of that name."""

    code = "FILE_NOT_FOUND"

    def message(self, language: Language) -> str:
        """The sentence for a person; a repository that lacks a file has another one."""
        return translate("checkpoint.noSuchFile", language, **self.params)


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


class DataChanged(Conflict):
    """A data set is no longer the version that a run was trained on."""

    code = "DATA_CHANGED"


class SpecInvalid(Conflict):
    """What a run was made of cannot be read."""

    code = "SPEC_INVALID"


class RunKnown(Conflict):
    """A run that is to be taken over is here already."""

    code = "RUN_KNOWN"


class RunAlive(Conflict):
    """A run that is to be taken over is being trained at this moment."""

    code = "RUN_ALIVE"


class PathNotAllowed(Forbidden):
    """The server reads a path that somebody names only with a ticket in its data directory."""

    code = "PATH_NOT_ALLOWED"


class RangeNotSatisfiable(KargahError):
    """A part of a file that lies behind its end."""

    code, status = "RANGE_NOT_SATISFIABLE", 416


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
