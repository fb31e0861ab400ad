"""The registry: what is held. Rooms put what they own into it; lists, sizes and deletion are the same for all kinds."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from kargah.assets import blobs
from kargah.assets.catalog import Catalog, Kind
from kargah.assets.errors import AssetNotFound, BuiltinAsset
from kargah.assets.models import AssetRow, HoldRow
from kargah.assets.records import Records
from kargah.ground.db import Database
from kargah.ground.errors import AssetNotReady, InUse, InvalidState, invalid
from kargah.ground.events import EventLog
from kargah.ground.home import Home
from kargah.ground.ids import now

KINDS = ("model", "dataset", "checkpoint")

Remover = Callable[[Session, AssetRow], int | None]
"""Forgets what its room knew of an asset; gives the bytes that the disk got back by it, if any."""


class Registry:
    """Reads and writes of the assets held. `removed` callbacks let the owner of a kind forget what it knew."""

    def __init__(self, database: Database, events: EventLog, home: Home, catalog: Catalog) -> None:
        self.database = database
        self.home = home
        self.catalog = catalog
        self.records = Records(home.root)
        self._events = events
        self._removers: dict[str, Remover] = {}

    def on_remove(self, kind: str, remover: Remover) -> None:
        """Call `remover` in the transaction that deletes an asset of `kind`."""
        self._removers[kind] = remover

    def put(self, session: Session, kind: str, id: str, **values: Any) -> AssetRow:
        """Insert an asset, or change what `values` name of it, and tell of it."""
        row = session.get(AssetRow, (kind, id))
        if row is None:
            row = AssetRow(kind=kind, id=id, created_at=now(), facts={})
            session.add(row)
        before = row.status
        for name, value in values.items():
            setattr(row, name, value)
        if row.status == "ready" and before != "ready":
            row.downloaded_at = values.get("downloaded_at") or now()
            row.progress, row.error = None, None
        session.flush()
        self.records.keep(session, row)
        if row.status != before:
            self._events.append(session, "assets", "state", {"kind": kind, "id": id, "status": row.status})
        return row

    def find(self, session: Session, kind: str, id: str) -> AssetRow | None:
        """The asset, or None."""
        return session.get(AssetRow, (kind, id))

    def get(self, session: Session, id: str, kind: str | None = None) -> AssetRow:
        """The asset under `id`. Raises `AssetNotFound`, and `ValidationFailed` when `id` names several kinds."""
        if kind is not None and kind not in KINDS:
            raise invalid("kind", "problem.oneOf", expected=", ".join(KINDS))
        names = {id}
        for catalog_kind in ("model", "dataset"):
            entry = self.catalog.find(catalog_kind, id)
            if entry is not None:
                names.add(entry.id)
        query = select(AssetRow).where(AssetRow.id.in_(names))
        rows = session.scalars(query if kind is None else query.where(AssetRow.kind == kind)).all()
        if not rows:
            raise AssetNotFound(id=id)
        if len(rows) > 1:
            raise invalid("kind", "problem.kindNeeded")
        return rows[0]

    def require_ready(
        self, session: Session, kinds: Iterable[str], id: str, missing: type[Exception] | None = None
    ) -> AssetRow:
        """An asset that may be used now: approved, held and whole.

        Raises `ModelNotAllowed` or `DatasetNotAllowed` for what is neither held nor approved, or no longer approved,
        and `AssetNotReady` for what is approved but not (wholly) here.
        """
        wanted = tuple(kinds)
        row = next((found for kind in wanted if (found := session.get(AssetRow, (kind, id)))), None)
        if row is None:
            entry = self.catalog.require(_catalog_kind(wanted), id)
            row = session.get(AssetRow, (entry.kind, entry.id))
            if row is None:
                raise AssetNotReady(id=id, details={"id": id, "status": "available"})
        if row.source in ("HuggingFace", "builtin"):
            self.catalog.require(_catalog_kind(wanted), row.id)
        if row.status != "ready":
            raise AssetNotReady(id=id, details={"id": id, "status": row.status})
        return row

    def folder(self, row: AssetRow) -> Path:
        """Where the asset's files are."""
        if row.path is None:
            raise AssetNotReady(id=row.id)
        return self.home.root / row.path

    def listed(self, session: Session, kinds: Iterable[str], run_id: str | None = None) -> list[AssetRow]:
        """Assets of `kinds`, newest first."""
        query = select(AssetRow).where(AssetRow.kind.in_(list(kinds)))
        if run_id is not None:
            query = query.where(AssetRow.run_id == run_id)
        return list(session.scalars(query.order_by(AssetRow.created_at.desc(), AssetRow.id)).all())

    def hold(self, session: Session, holder: str, assets: Iterable[tuple[str, str]]) -> None:
        """`holder` uses `assets` (pairs of kind and id)."""
        for kind, id in set(assets):
            session.merge(HoldRow(holder=holder, kind=kind, asset_id=id))

    def release(self, session: Session, holder: str) -> None:
        """`holder` uses nothing any more."""
        session.execute(delete(HoldRow).where(HoldRow.holder == holder))

    def holders(self, session: Session, kind: str, id: str) -> list[str]:
        """Who uses an asset."""
        query = select(HoldRow.holder).where(HoldRow.kind == kind, HoldRow.asset_id == id)
        return list(session.scalars(query.order_by(HoldRow.holder)).all())

    def remove(self, id: str, kind: str | None = None) -> int:
        """Delete an asset and its files. Returns the bytes the disk got back.

        Raises `AssetNotFound`, `BuiltinAsset`, `InvalidState` while it is on its way, `InUse` while something uses it.
        """
        with self.database.write() as session:
            row = self.get(session, id, kind)
            if row.source == "builtin":
                raise BuiltinAsset(id=row.id)
            if row.status == "downloading":
                raise InvalidState(details={"status": row.status})
            holders = self.holders(session, row.kind, row.id)
            if holders:
                raise InUse(id=row.id, details={"holders": holders})
            folder = self.home.root / row.path if row.path else None
            remover = self._removers.get(row.kind)
            freed = (remover(session, row) if remover is not None else None) or 0
            session.delete(row)
            self.records.forget(session, row)
            self._events.append(session, "assets", "removed", {"kind": row.kind, "id": row.id})
        freed += remove_folder(folder) if folder else 0
        return freed + blobs.sweep(self.home)

    def count_ready(self, session: Session) -> int:
        """How many assets are ready."""
        return session.scalar(select(func.count()).select_from(AssetRow).where(AssetRow.status == "ready")) or 0


def remove_folder(folder: Path) -> int:
    """Delete a folder; renamed away first, so that it is never seen half deleted. Returns the bytes given back."""
    if not folder.exists():
        return 0
    doomed = folder.with_name(f".{folder.name}.deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    freed = blobs.exclusive_bytes(doomed)
    shutil.rmtree(doomed)
    return freed


def _catalog_kind(kinds: tuple[str, ...]) -> Kind:
    return "dataset" if "dataset" in kinds else "model"
