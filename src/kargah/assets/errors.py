"""Errors of the assets room."""

from kargah.ground.errors import BadRequest, CannotStart, Conflict, NotFound


class CatalogInvalid(CannotStart):
    """A catalog file has a bad entry: file, entry, field."""

    code = "CATALOG_INVALID"


class ModelNotAllowed(BadRequest):
    """The model is not in the catalog of approved ones."""

    code = "MODEL_NOT_ALLOWED"


class DatasetNotAllowed(BadRequest):
    """The data set is not in the catalog of approved ones."""

    code = "DATASET_NOT_ALLOWED"


class AssetNotFound(NotFound):
    """No such model, data set or checkpoint is held."""

    code = "ASSET_NOT_FOUND"


class DownloadNotFound(NotFound):
    """Nothing was ever asked to arrive under this id."""

    code = "DOWNLOAD_NOT_FOUND"


class BuiltinAsset(Conflict):
    """What Kargah carries itself cannot be deleted."""

    code = "BUILTIN_ASSET"


class AlreadyApproved(Conflict):
    """What somebody asks approval for is in the catalog."""

    code = "ALREADY_APPROVED"


class ApprovalRequestNotFound(NotFound):
    """Nobody asked for approval under this id, or the request was withdrawn."""

    code = "APPROVAL_REQUEST_NOT_FOUND"
