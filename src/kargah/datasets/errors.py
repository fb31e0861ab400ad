"""Errors of the datasets room. Each names the file, and the row or the byte, so that a person can go there and mend it.

Those of reading and importing end an upload (they are the `error` of its stream's last event); a few also answer a
request directly. Rows are counted from 1 without the header; lines and columns from 1, bytes from 0.
"""

from kargah.ground.errors import BadRequest, Conflict, KargahError


class EmptyData(BadRequest):
    """A file without a single row: `file`."""

    code = "EMPTY_DATA"


class BadEncoding(BadRequest):
    """A byte that is not UTF-8: `file`, `byte`, `row`, `line`."""

    code = "BAD_ENCODING"


class BadFile(BadRequest):
    """A file of no format that is read here: `file`."""

    code = "BAD_FILE"


class BadRow(BadRequest):
    """A row with more or fewer columns than the header: `file`, `row`, `line`, `found`, `expected`."""

    code = "BAD_ROW"


class BadQuote(BadRequest):
    """A quotation mark that is opened and not closed, or closed in the middle of a cell: `file`, `row`, `line`."""

    code = "BAD_QUOTE"


class BadJson(BadRequest):
    """A row that is no JSON object: `file`, `row`, `line`."""

    code = "BAD_JSON"


class RowTooLong(BadRequest):
    """A row beyond the limit: `file`, `row`, `line`, `limit` in bytes."""

    code = "ROW_TOO_LONG"


class DuplicateColumn(BadRequest):
    """Two columns of one name: `file`, `column`."""

    code = "DUPLICATE_COLUMN"


class TooManyColumns(BadRequest):
    """More columns than a table can have here: `file`, `limit`."""

    code = "TOO_MANY_COLUMNS"


class ColumnNotFound(BadRequest):
    """A wanted column is not in a file: `column`, `file`, `available`."""

    code = "COLUMN_NOT_FOUND"


class TooManyLabels(BadRequest):
    """A label column with more different values than labels can be: `column`, `limit`."""

    code = "TOO_MANY_LABELS"


class TrainSplitMissing(BadRequest):
    """Files for validation or test alone."""

    code = "TRAIN_SPLIT_MISSING"


class UploadInterrupted(KargahError):
    """The server stopped before the upload was wholly here."""

    code, status = "UPLOAD_INTERRUPTED", 500


class DatasetDamaged(Conflict):
    """What is on the disk is not what was stored: `id`."""

    code = "DATASET_DAMAGED"
