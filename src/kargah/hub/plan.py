"""The plan of a download: one commit and the exact files of it, fixed before the first byte and kept as `plan.json`.

A later worker of the same download goes on with the plan it finds: at its commit, even if the repository moved.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kargah.hub.failure import EndpointFailed
from kargah.hub.job import Job
from kargah.spec.layout import read_json, write_json

PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a commit. `digest` is `sha256:<64 hex>` or `git-sha1:<40 hex>` (sha1 of `blob <size>\\0` + bytes)."""

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be fetched. `needs_conversion`: the weights come as pickle files and must be converted before use.

    `has_code`: the repository holds Python files, which are never fetched.
    """

    repo_id: str
    kind: str
    endpoint: str
    commit: str
    files: tuple[PlannedFile, ...]
    needs_conversion: bool = False
    has_code: bool = False

    @property
    def contents(self) -> tuple[PlannedFile, ...]:
        """The files to fetch: one a digest, for equal contents are stored once."""
        return tuple({file.digest: file for file in reversed(self.files)}.values())[::-1]

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.contents)


def write_plan(folder: Path, job: Job, plan: Plan) -> None:
    """Keep the plan in the download's folder, with what was asked beside it."""
    write_json(
        folder / PLAN,
        {
            "asked": job.asked,
            "repoId": plan.repo_id,
            "kind": plan.kind,
            "endpoint": plan.endpoint,
            "commit": plan.commit,
            "needsConversion": plan.needs_conversion,
            "hasCode": plan.has_code,
            "totalBytes": plan.total_bytes,
            "files": [{"path": file.path, "sizeBytes": file.size_bytes, "digest": file.digest} for file in plan.files],
        },
    )


def find_plan(folder: Path, job: Job) -> Plan | None:
    """The plan an earlier worker left for the same question, or None."""
    try:
        value: Any = read_json(folder / PLAN)
        if not isinstance(value, dict) or value["asked"] != job.asked:
            return None
        return Plan(
            repo_id=value["repoId"],
            kind=value["kind"],
            endpoint=value["endpoint"],
            commit=value["commit"],
            files=tuple(
                PlannedFile(entry["path"], int(entry["sizeBytes"]), entry["digest"]) for entry in value["files"]
            ),
            needs_conversion=bool(value["needsConversion"]),
            has_code=bool(value["hasCode"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def apply_pins(plan: Plan, job: Job) -> Plan:
    """Hold the plan against what the catalog fixed. Its digests win: where they are of another kind, they are used.

    Raises `EndpointFailed` (`CHECKSUM_MISMATCH`, `FILE_NOT_FOUND`), for another endpoint may hold what was approved.
    """
    if job.pins.commit is not None and plan.commit != job.pins.commit:
        raise _mismatch("the commit", job.pins.commit, plan.commit)
    pins = dict(job.pins.digests)
    files = tuple(_pinned(file, pins.pop(file.path, file.digest)) for file in plan.files)
    if pins:
        missing = min(pins)
        raise EndpointFailed("FILE_NOT_FOUND", f"{missing} is fixed by the catalog and not there", file=missing)
    return dataclasses.replace(plan, files=files)


def _pinned(file: PlannedFile, digest: str) -> PlannedFile:
    if digest.partition(":")[0] == file.digest.partition(":")[0] and digest != file.digest:
        raise _mismatch(file.path, digest, file.digest)
    return dataclasses.replace(file, digest=digest)


def _mismatch(what: str, expected: str, actual: str) -> EndpointFailed:
    return EndpointFailed(
        "CHECKSUM_MISMATCH",
        f"{what}: the catalog fixes {expected}, the hub says {actual}",
        file=what,
        expected=expected,
        actual=actual,
    )
