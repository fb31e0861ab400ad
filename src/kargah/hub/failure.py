"""What can end a transfer, as stable codes. The worker reports them; the server turns them into answers and events.

    TransferFailed
      EndpointFailed    this endpoint is of no more use for the file or the repository; the next one may be

Codes: `HUB_UNREACHABLE`, `HUB_RATE_LIMITED`, `HUB_UNAUTHORIZED`, `NOT_A_HUB`, `PROXY_NOT_SUPPORTED`, `REPO_NOT_FOUND`,
`REVISION_NOT_FOUND`, `FILE_NOT_FOUND`, `CHECKSUM_MISMATCH`, `UNSAFE_PATH`, `UNSAFE_WEIGHTS`, `NEEDS_REMOTE_CODE`,
`DISK_FULL`, `DOWNLOAD_BUSY`, `JOB_INVALID`, `STORAGE_FAILED`, `INTERNAL`.
"""

from collections.abc import Sequence
from typing import Any

RESUMABLE = frozenset(
    {
        *("HUB_UNREACHABLE", "HUB_RATE_LIMITED", "HUB_UNAUTHORIZED", "NOT_A_HUB", "PROXY_NOT_SUPPORTED"),
        *("DISK_FULL", "DOWNLOAD_BUSY"),
    }
)
"""Codes after which the same download can go on from the bytes it has, once a person or time has mended the cause."""


class TransferFailed(Exception):
    """A transfer ended. `params` fill the message's blanks, `detail` is for the log and never for a person."""

    def __init__(self, code: str, detail: str, **params: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.params = params

    @property
    def resumable(self) -> bool:
        """Whether the same download may go on later from where it stands."""
        return self.code in RESUMABLE


class EndpointFailed(TransferFailed):
    """One endpoint failed in a way that another one might not."""


class Stopped(Exception):
    """The worker was told to stop; what was fetched stays where it is."""


def first_of(failures: Sequence[EndpointFailed]) -> TransferFailed:
    """The failure to report when every endpoint failed: the preferred endpoint's, with the others in its detail."""
    first = failures[0]
    return TransferFailed(first.code, "; ".join(failure.detail for failure in failures), **first.params)
