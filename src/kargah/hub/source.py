"""What the hub's protocol is served from: repositories as contents with digests, wherever they stand on disk."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

LARGE_BYTES = 10 * 1024 * 1024
"""A file at least this large counts as large and is named by its SHA-256; a smaller one by its git blob id."""

BINARY_SUFFIXES = frozenset(
    {
        *(".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".npz", ".npy"),
        *(".parquet", ".arrow", ".gz", ".zst", ".zip", ".model"),
    }
)
"""Files that count as large whatever their size."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file. `git_id` is the git blob id of what git would hold: the bytes, or the pointer of a large file."""

    path: str
    location: Path
    size_bytes: int
    git_id: str
    sha256: str | None = None
    """Present for a large file."""

    @property
    def etag(self) -> str:
        return self.sha256 or self.git_id


@dataclass(frozen=True)
class SourceSnapshot:
    """One commit of a repository. `kind` is `model` or `dataset`; `modified_at` is RFC 3339."""

    repo_id: str
    kind: str
    commit: str
    files: Mapping[str, SourceFile]
    modified_at: str = "1970-01-01T00:00:00.000Z"
    description: str | None = None

    @cached_property
    def folders(self) -> Mapping[str, str]:
        """Every folder below the root with an id made of what it holds."""
        held: dict[str, list[str]] = {}
        for file in self.files.values():
            parts = file.path.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                held.setdefault("/".join(parts[:depth]), []).append(f"{file.path}\0{file.etag}")
        return {folder: hashlib.sha1("\n".join(sorted(lines)).encode()).hexdigest() for folder, lines in held.items()}


class RepoSource(Protocol):
    """Repositories to serve. Called in a thread, for it may read the disk."""

    def find(self, kind: str, repo_id: str, revision: str | None) -> SourceSnapshot | None:
        """The snapshot at a branch, tag, `refs/…` or commit, without one at the main one; None if there is none."""
        ...

    def refs(self, kind: str, repo_id: str) -> Mapping[str, str] | None:
        """Names of revisions (`main`, `refs/pr/1`) to commits, or None for no such repository."""
        ...

    def repos(self, kind: str) -> Iterable[SourceSnapshot]:
        """Every repository of a kind at its main revision."""
        ...


def commit_of(files: Iterable[SourceFile]) -> str:
    """A commit id that depends on the contents alone: SHA-1 of the sorted manifest."""
    lines = sorted(f"{file.path}\0{file.size_bytes}\0{file.etag}\n" for file in files)
    return hashlib.sha1("".join(lines).encode("utf-8")).hexdigest()


def pointer_of(sha256: str, size_bytes: int) -> bytes:
    """The pointer that git holds in place of a large file (git-lfs specification, version 1)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size_bytes}\n".encode()


def git_blob_id(content: bytes) -> str:
    """The id git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
