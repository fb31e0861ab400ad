"""Archives that are brought by hand: zip, and tar as it is or packed by gzip or zstd. Nothing of them is trusted.

Every name is judged before a byte is unpacked, links must lead to a file of the same archive, devices and passwords are
refused, an archive inside an archive is a file like any other, and what is unpacked is held against what was declared.
"""

import gzip
import lzma
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import pyarrow as pa

from kargah.hub.import_errors import ArchiveDamaged, ArchiveEncrypted, ArchiveTooLarge, UnsafePath
from kargah.hub.import_source import MAX_FILES, Member, check_names

ZIP, TAR = "zip", "tar"
MAX_RATIO = 200
"""Unpacked to packed. Weights shrink hardly at all and text some tenfold."""
RATIO_FROM_BYTES = 100_000_000
"""Below this nobody minds."""
MAX_HEADER_BYTES = 1024 * 1024
MAX_LINKS = 40

_SUFFIXES = {".zip": ZIP, ".tar": TAR, ".tar.gz": TAR, ".tgz": TAR, ".tar.zst": TAR, ".tzst": TAR}
_UTF8_NAME = 0x800
_ENCRYPTED = 0x1
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    struct.error,
    NotImplementedError,
    pa.ArrowException,
)
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"K")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may unpack to, and how many times its own size."""

    max_bytes: int
    max_ratio: int = MAX_RATIO
    ratio_from_bytes: int = RATIO_FROM_BYTES


def suffix_of(name: str) -> str | None:
    """The suffix by which a file's name says that it is an archive, or None."""
    lowered = name.lower()
    return next((suffix for suffix in sorted(_SUFFIXES, key=len, reverse=True) if lowered.endswith(suffix)), None)


def open_archive(name: str, file: Path, limits: Limits) -> "ZipSource | TarSource":
    """The archive in `file`; `name` is what it was called, and its suffix decides. Raises nothing yet."""
    suffix = suffix_of(name) or ".zip"
    stem = name[: -len(suffix)] if suffix_of(name) else name
    return ZipSource(stem, file, limits) if _SUFFIXES[suffix] == ZIP else TarSource(stem, file, suffix, limits)


@contextmanager
def damage(name: str) -> Iterator[None]:
    """What the libraries say of a broken archive, as our one error of it: for whoever reads what a source gave."""
    try:
        yield
    except _DAMAGE as error:
        raise ArchiveDamaged(name) from error
    except OSError as error:
        # A packed stream that is none is an error of reading here, but not one of the disk.
        if error.errno is None:
            raise ArchiveDamaged(name) from error
        raise
    except RuntimeError as error:
        # The way zipfile says that a password is needed.
        raise ArchiveEncrypted(name) from error


class ZipSource:
    """A zip file."""

    origin = ZIP

    def __init__(self, name: str, file: Path, limits: Limits) -> None:
        self.name = name
        self._file = file
        self._limits = limits

    def members(self) -> Mapping[str, Member]:
        tally = _Tally(self._limits, self._file.stat().st_size)
        sizes: dict[str, int] = {}
        links: dict[str, str] = {}
        with self._opened() as archive:
            for info in archive.infolist():
                name = _zip_name(info)
                if info.flag_bits & _ENCRYPTED:
                    raise ArchiveEncrypted(name)
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    check_names([name.rstrip("/")])
                    continue
                if name in sizes or name in links:
                    raise ArchiveDamaged(name)
                tally.add(name, info.file_size)
                if kind == stat.S_IFLNK:
                    links[name] = _zip_link(archive, info, name)
                elif kind in (0, stat.S_IFREG):
                    sizes[name] = info.file_size
                else:
                    raise UnsafePath(name)
        return _resolved(sizes, links)

    def read(self, contents: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        with self._opened() as archive:
            for info in archive.infolist():
                name = _zip_name(info)
                if name in contents:
                    with damage(name), archive.open(info) as file:
                        yield name, cast(BinaryIO, file)

    def place(self, content: str) -> Path | None:
        return None

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        with ExitStack() as stack:
            with damage(self.name):
                archive = stack.enter_context(zipfile.ZipFile(self._file))
            yield archive


class TarSource:
    """A tar file. A packed one is read from its beginning each time, so it is asked as seldom as can be."""

    origin = TAR

    def __init__(self, name: str, file: Path, suffix: str, limits: Limits) -> None:
        self.name = name
        self._file = file
        self._suffix = suffix
        self._limits = limits

    def members(self) -> Mapping[str, Member]:
        tally = _Tally(self._limits, self._file.stat().st_size)
        sizes: dict[str, int] = {}
        links: dict[str, str] = {}
        with damage(self.name), self._opened() as archive:
            for info in archive:
                name = _tar_name(info)
                if name in ("", "."):
                    continue
                if info.isdir():
                    check_names([name])
                    continue
                if name in sizes or name in links:
                    raise ArchiveDamaged(name)
                tally.add(name, info.size)
                if info.issym():
                    links[name] = posixpath.join(posixpath.dirname(name), info.linkname)
                elif info.islnk():
                    links[name] = info.linkname.removeprefix("./")
                elif info.isreg():
                    sizes[name] = info.size
                else:
                    raise UnsafePath(name)
        return _resolved(sizes, links)

    def read(self, contents: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        left = set(contents)
        with damage(self.name), self._opened() as archive:
            for info in archive:
                name = _tar_name(info)
                if name in left and info.isreg():
                    file = archive.extractfile(info)
                    assert file is not None
                    yield name, cast(BinaryIO, file)
                    left.discard(name)
                    if not left:
                        return

    def place(self, content: str) -> Path | None:
        return None

    @contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        with ExitStack() as stack:
            if self._suffix == ".tar":
                yield stack.enter_context(tarfile.open(self._file, "r:", tarinfo=_Header))
                return
            unpacked: IO[bytes]
            if self._suffix in (".tar.gz", ".tgz"):
                unpacked = cast(IO[bytes], stack.enter_context(gzip.open(self._file)))
            else:
                unpacked = stack.enter_context(pa.input_stream(str(self._file), compression="zstd"))
            # As a stream: going back a byte in a packed file would mean to unpack it again.
            yield stack.enter_context(tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Header))


class _Header(tarfile.TarInfo):
    """A header whose long names and extensions cannot be made to fill the memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is too long")
        told: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return told


class _Tally:
    """What was declared so far. Raises `ArchiveTooLarge` as soon as it is more than the limits allow."""

    def __init__(self, limits: Limits, packed_bytes: int) -> None:
        self._num_files = 0
        self._bytes = 0
        allowed_by_ratio = max(limits.ratio_from_bytes, packed_bytes * limits.max_ratio)
        self._allowed = min(limits.max_bytes, allowed_by_ratio)

    def add(self, name: str, size_bytes: int) -> None:
        self._num_files += 1
        self._bytes += size_bytes
        if self._num_files > MAX_FILES or self._bytes > self._allowed:
            raise ArchiveTooLarge(name)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A name as it was meant: many programs write UTF-8 and do not say so, and it is then read as cp437."""
    # What follows a zero byte was cut away by the library; a name that has one is no name.
    name = info.orig_filename if "\0" in info.orig_filename else info.filename
    if not info.flag_bits & _UTF8_NAME:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            return name
    return name


def _zip_link(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> str:
    if info.file_size > 4096:
        raise UnsafePath(name)
    with damage(name):
        leads = archive.read(info)
    try:
        return posixpath.join(posixpath.dirname(name), leads.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnsafePath(name) from error


def _tar_name(info: tarfile.TarInfo) -> str:
    return info.name.removeprefix("./")


def _resolved(sizes: Mapping[str, int], links: Mapping[str, str]) -> dict[str, Member]:
    """Files, and links followed to files of the same archive. Raises `UnsafePath`."""
    check_names([*sizes, *links])
    found = {name: Member(name, name, size) for name, size in sizes.items()}
    for name in links:
        leads = name
        for _ in range(MAX_LINKS):
            leads = posixpath.normpath(links[leads])
            if leads not in links:
                break
        if leads not in sizes:
            raise UnsafePath(name)
        found[name] = Member(name, leads, sizes[leads])
    return found
