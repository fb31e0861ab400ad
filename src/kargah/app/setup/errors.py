"""Why the training part cannot be brought. None of these is ever sent over HTTP.

CannotStart
└── SetupFailed
    ├── PipMissing          PIP_MISSING
    ├── ExternallyManaged   EXTERNALLY_MANAGED
    ├── Unresolved          REQUIREMENTS_UNRESOLVED
    ├── IndexUnreachable    PACKAGE_INDEX_UNREACHABLE
    ├── IndexRefused        PACKAGE_INDEX_REFUSED
    ├── NotAWheel           NOT_A_WHEEL
    ├── WheelMismatch       WHEEL_MISMATCH
    ├── WheelsDamaged       WHEELS_DAMAGED
    ├── WheelsMissing       WHEELS_MISSING
    ├── WheelsBusy          WHEELS_BUSY
    ├── WheelsUnusable      WHEELS_UNUSABLE
    ├── InstallFailed       INSTALL_FAILED
    └── ComputeBroken       COMPUTE_BROKEN
"""

from kargah.ground.errors import CannotStart


class SetupFailed(CannotStart):
    """Base of what ends `kargah setup compute`."""


class PipMissing(SetupFailed):
    code = "PIP_MISSING"


class ExternallyManaged(SetupFailed):
    """The operating system owns this Python (PEP 668)."""

    code = "EXTERNALLY_MANAGED"


class Unresolved(SetupFailed):
    """pip found no set of wheels; `problem` is what it said."""

    code = "REQUIREMENTS_UNRESOLVED"


class IndexUnreachable(SetupFailed):
    """A wheel brought no new byte for the whole budget of attempts."""

    code = "PACKAGE_INDEX_UNREACHABLE"


class IndexRefused(SetupFailed):
    """An answer that does not pass by itself: 401, 403, 404…"""

    code = "PACKAGE_INDEX_REFUSED"


class NotAWheel(SetupFailed):
    """A page came instead of a wheel: a login page, a filter."""

    code = "NOT_A_WHEEL"


class WheelMismatch(SetupFailed):
    """The bytes are not those that the index announced."""

    code = "WHEEL_MISMATCH"


class WheelsDamaged(SetupFailed):
    """Wheels of a folder that are not what they were, by name."""

    code = "WHEELS_DAMAGED"


class WheelsMissing(SetupFailed):
    """What a folder lacks, by name, and what machine it would be for."""

    code = "WHEELS_MISSING"


class WheelsBusy(SetupFailed):
    code = "WHEELS_BUSY"


class WheelsUnusable(SetupFailed):
    code = "WHEELS_UNUSABLE"


class InstallFailed(SetupFailed):
    code = "INSTALL_FAILED"


class ComputeBroken(SetupFailed):
    """Installed, but it cannot be imported."""

    code = "COMPUTE_BROKEN"
