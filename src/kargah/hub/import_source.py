"""Where an import is read from, seen as names and contents: a folder on this machine, or files as they were received.

A source lists everything first (no contents are read), and is then asked for some, in the order that suits it.
Archives stand in `kargah.hub.import_archive`. Nothing here writes.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from kargah.hub.failure import TransferFailed
from kargah.hub.import_errors import ArchiveTooLarge, UnsafePath
from kargah.hub.selection import check_paths

MAX_FILES = 20_000
"""More files than this are no model and no data set."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a source. `content` is the name its bytes stand under: its own, or what a link leads to."""

    path: str
    content: str
    size_bytes: int


class Source(Protocol):
    """Something that a model or a data set may be read from. `origin` is `folder`, `zip` or `tar`.

    `name` is what the folder or the archive is called, without a suffix.
    """

    origin: str
    name: str

    def members(self) -> Mapping[str, Member]:
        """Every file by its path. Raises what `kargah.hub.import_errors` has, and `OSError`."""
        ...

    def read(self, contents: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        """Each of `contents` once, open for reading until the next one is asked for."""
        ...

    def place(self, content: str) -> Path | None:
        """Our own file that holds a content and may be linked from elsewhere, or None: then it must be copied."""
        ...


class FolderSource:
    """A folder. Links are followed inside it alone; what is neither file nor folder is refused."""

    origin = "folder"

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self.name = self._root.name

    def members(self) -> Mapping[str, Member]:
        found: dict[str, Member] = {}
        for base, folders, names in os.walk(self._root, onerror=_raise):
            # What git keeps is not what the repository holds.
            folders[:] = sorted(one for one in folders if one != ".git")
            for name in [*(one for one in folders if os.path.islink(os.path.join(base, one))), *sorted(names)]:
                path = Path(base, name)
                shown = path.relative_to(self._root).as_posix()
                found[shown] = self._member(path, shown)
                if len(found) > MAX_FILES:
                    raise ArchiveTooLarge(shown)
        check_names(found)
        return found

    def read(self, contents: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        for content in sorted(contents):
            with open(self._root / content, "rb") as file:
                yield content, file

    def place(self, content: str) -> Path | None:
        return None

    def file(self, member: Member) -> Path:
        """Where a member's bytes are."""
        return self._root / member.content

    def _member(self, path: Path, shown: str) -> Member:
        try:
            real = path.resolve(strict=True)
            kind = real.stat()
        except (OSError, RuntimeError) as error:
            # A link to nothing or to itself.
            raise UnsafePath(shown) from error
        if not real.is_relative_to(self._root) or not stat.S_ISREG(kind.st_mode):
            raise UnsafePath(shown)
        return Member(shown, real.relative_to(self._root).as_posix(), kind.st_size)


class SpooledSource:
    """Files that were received one by one: a name each, and where its bytes are."""

    origin = "folder"

    def __init__(self, name: str, files: Mapping[str, Path]) -> None:
        self.name = name
        self._files = files

    def members(self) -> Mapping[str, Member]:
        check_names(self._files)
        return {path: Member(path, path, place.stat().st_size) for path, place in self._files.items()}

    def read(self, contents: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        for content in sorted(contents):
            with open(self._files[content], "rb") as file:
                yield content, file

    def place(self, content: str) -> Path | None:
        return self._files[content]


def check_names(paths: Iterable[str]) -> None:
    """Refuse names as those of a repository on a hub are refused. Raises `UnsafePath`."""
    try:
        check_paths(paths)
    except TransferFailed as failure:
        raise UnsafePath(str(failure.params["path"])) from failure


def _raise(error: OSError) -> None:
    raise error
