"""Tables of the metrics room. `training_metrics` is part of the contract: wide, readable by plain SQL, never sealed."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Float, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from kargah.ground.db import Base, UtcDateTime


class TrainingMetricRow(Base):
    """One logged step of one run: the values of the highest attempt that reached it. Null means not measured.

    `non_finite` is JSON (`{"loss": "NaN"}`) naming values that were NaN or infinite; `throughput` is samples a second.
    """

    __tablename__ = "training_metrics"
    __table_args__ = ({"sqlite_with_rowid": False},)

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    epoch: Mapped[float | None] = mapped_column(Float)
    loss: Mapped[float | None] = mapped_column(Float)
    val_loss: Mapped[float | None] = mapped_column(Float)
    accuracy: Mapped[float | None] = mapped_column(Float)
    throughput: Mapped[float | None] = mapped_column(Float)
    learning_rate: Mapped[float | None] = mapped_column(Float)
    attempt: Mapped[int] = mapped_column(Integer)
    non_finite: Mapped[str | None] = mapped_column(Text)
    timestamp: Mapped[datetime] = mapped_column(UtcDateTime)


class RunLogRow(Base):
    """One log line of a run: the sentence `log.<key>` with `details` in it, `message` where there is none."""

    __tablename__ = "run_logs"
    __table_args__ = (Index("ix_run_logs_run_id_id", "run_id", "id"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(String(32))
    attempt: Mapped[int] = mapped_column(Integer)
    level: Mapped[str] = mapped_column(String(10))
    message: Mapped[str] = mapped_column(Text)
    key: Mapped[str | None] = mapped_column(String(60))
    details: Mapped[Any | None] = mapped_column(JSON)
    timestamp: Mapped[datetime] = mapped_column(UtcDateTime)
