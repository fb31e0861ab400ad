"""What can be wrong with a folder or an archive that is brought by hand. `details.file` names the file where one is.

Those of the source's form answer the request when the approved entry must first be read out of it, and otherwise end
the import's stream. What is wrong with the contents ends the stream with a code of `kargah.hub.failure`.
"""

from kargah.ground.errors import BadRequest


class UnsafePath(BadRequest):
    """A name that leaves its folder, a link that does, a device, or two names that are one on some disks."""

    code = "UNSAFE_PATH"

    def __init__(self, file: str) -> None:
        super().__init__(file=file, details={"file": file})


class ImportEmpty(BadRequest):
    """Nothing in it that could be a model or a data set."""

    code = "IMPORT_EMPTY"


class ImportUnnamed(BadRequest):
    """It does not say which approved entry it is, and nobody else did."""

    code = "IMPORT_UNNAMED"


class ImportMismatch(BadRequest):
    """It says that it is `found`, and `wanted` was asked for."""

    code = "IMPORT_MISMATCH"


class LfsPointer(BadRequest):
    """A pointer of git-lfs where the contents should be: `file`."""

    code = "LFS_POINTER"

    def __init__(self, file: str) -> None:
        super().__init__(file=file, details={"file": file})


class ArchiveDamaged(BadRequest):
    """An archive that cannot be read to its end, or says one thing of `file` and holds another."""

    code = "ARCHIVE_DAMAGED"

    def __init__(self, file: str) -> None:
        super().__init__(file=file, details={"file": file})


class ArchiveEncrypted(BadRequest):
    """An archive with a password: `file`."""

    code = "ARCHIVE_ENCRYPTED"

    def __init__(self, file: str) -> None:
        super().__init__(file=file, details={"file": file})


class ArchiveTooLarge(BadRequest):
    """An archive that unpacks to more than is allowed, or to far more than its own size: `file`."""

    code = "ARCHIVE_TOO_LARGE"

    def __init__(self, file: str) -> None:
        super().__init__(file=file, details={"file": file})
