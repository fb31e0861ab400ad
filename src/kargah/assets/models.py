"""Tables of the assets room."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from kargah.ground.db import Base, UtcDateTime


class AssetRow(Base):
    """A model, data set or checkpoint that is held or on its way. `path` is relative to the data directory."""

    __tablename__ = "assets"
    __table_args__ = (Index("ix_assets_created_at", "created_at"), Index("ix_assets_run_id", "run_id"))

    kind: Mapped[str] = mapped_column(String(20), primary_key=True)
    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    name: Mapped[str] = mapped_column(String(400))
    source: Mapped[str] = mapped_column(String(20))
    status: Mapped[str] = mapped_column(String(20))
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    progress: Mapped[int | None] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(String(60))
    revision: Mapped[str | None] = mapped_column(String(80))
    path: Mapped[str | None] = mapped_column(String(500))
    run_id: Mapped[str | None] = mapped_column(String(32))
    facts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    downloaded_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class HoldRow(Base):
    """`holder` (`run:<id>`, `endpoint:<name>`) uses an asset, so it must stay."""

    __tablename__ = "holds"
    __table_args__ = (Index("ix_holds_kind_asset_id", "kind", "asset_id"),)

    holder: Mapped[str] = mapped_column(String(120), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20), primary_key=True)
    asset_id: Mapped[str] = mapped_column(String(200), primary_key=True)


class TransferRow(Base):
    """Something on its way into the registry: a download from a hub or an upload."""

    __tablename__ = "transfers"
    __table_args__ = (Index("ix_transfers_kind_asset_id", "kind", "asset_id", "created_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    asset_id: Mapped[str] = mapped_column(String(200))
    origin: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20))
    phase: Mapped[str] = mapped_column(String(20))
    progress: Mapped[int] = mapped_column(Integer, default=0)
    bytes_downloaded: Mapped[int] = mapped_column(BigInteger, default=0)
    resumed_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[str | None] = mapped_column(String(60))
    error_params: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    error_details: Mapped[Any | None] = mapped_column(JSON)
    last_event_id: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ApprovalRequestRow(Base):
    """Somebody asked that a model or data set be approved. Of one asset, one request at most is open."""

    __tablename__ = "approval_requests"
    __table_args__ = (
        Index("ix_approval_requests_created_at", "created_at", "id"),
        Index(
            "uq_approval_requests_open",
            "kind",
            "asset_id",
            unique=True,
            sqlite_where=text("status = 'open'"),
            postgresql_where=text("status = 'open'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    asset_id: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(Text)
    note: Mapped[str | None] = mapped_column(Text)
    num_asked: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    decided_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
