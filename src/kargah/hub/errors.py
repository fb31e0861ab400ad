"""Codes that can end a download; each is `error` of its last event and has a sentence in fa and en."""

DOWNLOAD_CODES = (
    "CANCELLED",
    "HUB_UNREACHABLE",
    "HUB_RATE_LIMITED",
    "HUB_UNAUTHORIZED",
    "NOT_A_HUB",
    "REPO_NOT_FOUND",
    "REVISION_NOT_FOUND",
    "FILE_NOT_FOUND",
    "CHECKSUM_MISMATCH",
    "UNSAFE_PATH",
    "UNSAFE_WEIGHTS",
    "NEEDS_REMOTE_CODE",
    "DISK_FULL",
    "DOWNLOAD_BUSY",
    "JOB_INVALID",
    "STORAGE_FAILED",
    "WORKER_DIED",
    "CONVERSION_FAILED",
    "COMPUTE_MISSING",
    "INTERNAL",
)
