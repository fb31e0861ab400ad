"""What the tables of this room know and the files of assets do not, kept as files, so that the database is an index.

    <home>/records/assets/<kind>/<id>.json      a model or a data set: its row
    <home>/records/transfers/<kind>/<id>.json   the newest download, import or upload of an asset: its row
    <home>/records/requests/<id>.json           a request for approval: its row

A record is written right after the commit that changed its row, before anybody is answered. Checkpoints have none: the
journals of their runs tell of them.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import Session

from kargah.assets.models import ApprovalRequestRow, AssetRow, TransferRow
from kargah.ground.db import Database, UtcDateTime, after_commit
from kargah.spec.layout import read_json, write_json

log = logging.getLogger(__name__)

VERSION = 1
LONGEST_NAME = 180

Row = AssetRow | TransferRow | ApprovalRequestRow
R = TypeVar("R", AssetRow, TransferRow, ApprovalRequestRow)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that is there and cannot be read."""

    path: Path
    problem: str


class Records:
    """The records of one data directory."""

    def __init__(self, home: Path) -> None:
        self._root = home / "records"
        self._late: dict[Path, dict[str, Any] | None] = {}

    def keep(self, session: Session, row: Row) -> None:
        """Write the record of `row` once the transaction of `session` is committed. A checkpoint needs none."""
        if not (isinstance(row, AssetRow) and row.kind == "checkpoint"):
            after_commit(session, lambda: self._write(self._path(row), _values(row)))

    def forget(self, session: Session, row: Row) -> None:
        """Remove the record of `row` once the transaction of `session` is committed."""
        path = self._path(row)
        after_commit(session, lambda: self._write(path, None))

    def catch_up(self, database: Database) -> int:
        """Write the records that are missing, such as on the first start of a version that keeps them.

        Returns how many these were. A disk that refuses them is asked again at the next start.
        """
        with database.read() as session:
            assets = session.scalars(select(AssetRow).where(AssetRow.kind != "checkpoint")).all()
            requests = session.scalars(select(ApprovalRequestRow)).all()
            transfers = session.scalars(select(TransferRow).order_by(TransferRow.created_at)).all()
        newest = {(row.kind, row.asset_id): row for row in transfers}
        every: list[Row] = [*assets, *requests, *newest.values()]
        missing = [row for row in every if not self._path(row).exists()]
        for row in missing:
            self._write(self._path(row), _values(row))
        return len(missing)

    def assets(self) -> Iterator[AssetRow | Unreadable]:
        """Rows of every record of an asset."""
        return self._rows(AssetRow, "assets/*")

    def transfers(self) -> Iterator[TransferRow | Unreadable]:
        """Rows of every record of a transfer."""
        return self._rows(TransferRow, "transfers/*")

    def requests(self) -> Iterator[ApprovalRequestRow | Unreadable]:
        """Rows of every record of a request for approval."""
        return self._rows(ApprovalRequestRow, "requests")

    def _rows(self, table: type[R], folders: str) -> Iterator[R | Unreadable]:
        for path in sorted(self._root.glob(f"{folders}/*.json")):
            if path.name.startswith("."):
                continue
            try:
                yield _row(table, read_json(path))
            except (OSError, ValueError, KeyError, TypeError) as error:
                yield Unreadable(path, f"{type(error).__name__}: {error}")

    def _path(self, row: Row) -> Path:
        if isinstance(row, AssetRow):
            return self._root / "assets" / row.kind / _file_name(row.id)
        if isinstance(row, TransferRow):
            return self._root / "transfers" / row.kind / _file_name(row.asset_id)
        return self._root / "requests" / _file_name(row.id)

    def _write(self, path: Path, value: dict[str, Any] | None) -> None:
        self._late[path] = value
        for place, wanted in list(self._late.items()):
            try:
                _replace(place, wanted)
            except OSError:
                # The commit stands, so its answer must; the disk is asked again with the next record.
                log.exception("the record %s could not be written", place.name)
            else:
                del self._late[place]


def _replace(path: Path, value: dict[str, Any] | None) -> None:
    if value is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


def _file_name(any_id: str) -> str:
    """An id as a file's name; one too long for that is cut and told apart by its digest."""
    quoted = quote(any_id, safe="")
    if len(quoted) > LONGEST_NAME:
        digest = hashlib.sha256(any_id.encode("utf-8")).hexdigest()[:32]
        quoted = f"{quoted[: LONGEST_NAME - 33]}-{digest}"
    return f"{quoted}.json"


def _values(row: Row) -> dict[str, Any]:
    values = {attribute.key: getattr(row, attribute.key) for attribute in row.__mapper__.column_attrs}
    return {
        "version": VERSION,
        **{name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()},
    }


def _row(table: type[R], value: Any) -> R:
    if value["version"] != VERSION:
        raise ValueError(f"written by another version: {value['version']!r}")
    given: dict[str, Any] = {}
    for attribute in table.__mapper__.column_attrs:
        (column,) = attribute.columns
        one = value.get(attribute.key)
        if one is None and not column.nullable:
            raise KeyError(attribute.key)
        given[attribute.key] = datetime.fromisoformat(one) if one and isinstance(column.type, UtcDateTime) else one
    return table(**given)
