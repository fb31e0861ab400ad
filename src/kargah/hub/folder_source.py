"""Folders as repositories: `ROOT/models/<org>/<name>/…` and `ROOT/datasets/<org>/<name>/…` (`<org>` may be missing).

A folder is read again whenever it is asked for and its digests are kept by size and time, so a file that is changed
makes a new commit. Commits seen before stay known while their files are as they were.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from kargah.hub.source import (
    BINARY_SUFFIXES,
    LARGE_BYTES,
    SourceFile,
    SourceSnapshot,
    commit_of,
    git_blob_id,
    pointer_of,
)

_KIND_FOLDERS = {"model": "models", "dataset": "datasets"}
_NOT_CONTENT = frozenset({".git", ".cache", ".huggingface", "__pycache__"})
_READ_BYTES = 4 * 1024 * 1024

_Stamp = tuple[int, int]


class FolderSource:
    """A `RepoSource` over a folder. `large_bytes` is where a file begins to count as large."""

    def __init__(self, root: Path, *, large_bytes: int = LARGE_BYTES) -> None:
        self._root = root
        self._large_bytes = large_bytes
        self._lock = threading.Lock()
        self._digested: dict[Path, tuple[_Stamp, SourceFile]] = {}
        self._seen: dict[tuple[str, str, str], SourceSnapshot] = {}

    def find(self, kind: str, repo_id: str, revision: str | None) -> SourceSnapshot | None:
        folder = self._folder(kind, repo_id)
        if folder is None:
            return None
        with self._lock:
            seen = self._seen.get((kind, repo_id, revision or ""))
            if seen is not None:
                return self._as_it_was(seen)
            present = self._read(kind, repo_id, folder)
            return present if revision in (None, "main", "refs/heads/main", present.commit) else None

    def refs(self, kind: str, repo_id: str) -> Mapping[str, str] | None:
        snapshot = self.find(kind, repo_id, None)
        return {"main": snapshot.commit} if snapshot is not None else None

    def repos(self, kind: str) -> Iterable[SourceSnapshot]:
        for repo_id in self._repo_ids(kind):
            snapshot = self.find(kind, repo_id, None)
            if snapshot is not None:
                yield snapshot

    def _folder(self, kind: str, repo_id: str) -> Path | None:
        parts = repo_id.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            return None
        folder = self._root.joinpath(_KIND_FOLDERS[kind], *parts)
        if not folder.is_dir():
            return None
        # One part names either an organisation's folder or a repository of nobody.
        return folder if len(parts) == 2 or any(entry.is_file() for entry in folder.iterdir()) else None

    def _repo_ids(self, kind: str) -> list[str]:
        top = self._root / _KIND_FOLDERS[kind]
        if not top.is_dir():
            return []
        found: list[str] = []
        for entry in sorted(path for path in top.iterdir() if path.is_dir()):
            if any(child.is_file() for child in entry.iterdir()):
                found.append(entry.name)
            else:
                found += [f"{entry.name}/{child.name}" for child in sorted(entry.iterdir()) if child.is_dir()]
        return found

    def _read(self, kind: str, repo_id: str, folder: Path) -> SourceSnapshot:
        files: dict[str, SourceFile] = {}
        newest = 0.0
        for directory, names, entries in os.walk(folder):
            names[:] = sorted(name for name in names if name not in _NOT_CONTENT)
            for entry in sorted(entries):
                location = Path(directory, entry)
                if not location.is_file():
                    continue
                stat = location.stat()
                newest = max(newest, stat.st_mtime)
                path = location.relative_to(folder).as_posix()
                files[path] = self._digest(path, location, (stat.st_size, stat.st_mtime_ns))
        modified = datetime.fromtimestamp(newest, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        snapshot = SourceSnapshot(repo_id, kind, commit_of(files.values()), files, modified)
        return self._seen.setdefault((kind, repo_id, snapshot.commit), snapshot)

    def _as_it_was(self, snapshot: SourceSnapshot) -> SourceSnapshot:
        """A snapshot seen before, without files that were changed since."""
        files = _Unchanged(snapshot.files, self._is_unchanged)
        return SourceSnapshot(snapshot.repo_id, snapshot.kind, snapshot.commit, files, snapshot.modified_at)

    def _is_unchanged(self, file: SourceFile) -> bool:
        try:
            stat = os.stat(file.location)
        except OSError:
            return False
        return self._digested.get(file.location) == ((stat.st_size, stat.st_mtime_ns), file)

    def _digest(self, path: str, location: Path, stamp: _Stamp) -> SourceFile:
        known = self._digested.get(location)
        if known is not None and known[0] == stamp:
            return known[1]
        size = stamp[0]
        if size >= self._large_bytes or location.suffix.lower() in BINARY_SUFFIXES:
            with open(location, "rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            file = SourceFile(path, location, size, git_blob_id(pointer_of(sha256, size)), sha256)
        else:
            file = SourceFile(path, location, size, git_blob_id(location.read_bytes()))
        self._digested[location] = (stamp, file)
        return file


class _Unchanged(Mapping[str, SourceFile]):
    """Files of a snapshot that are as they were, each looked at when it is asked for: most requests want one."""

    def __init__(self, files: Mapping[str, SourceFile], is_unchanged: Callable[[SourceFile], bool]) -> None:
        self._files = files
        self._is_unchanged = is_unchanged

    def __getitem__(self, path: str) -> SourceFile:
        file = self._files[path]
        if not self._is_unchanged(file):
            raise KeyError(path)
        return file

    def __iter__(self) -> Iterator[str]:
        return (path for path, file in self._files.items() if self._is_unchanged(file))

    def __len__(self) -> int:
        return sum(1 for _ in self)
