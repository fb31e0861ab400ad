"""Tables of the runs room. The row of a run also keeps its latest values, so that a list never reads step rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from kargah.ground.db import Base, UtcDateTime
from kargah.spec.run_spec import RunSpec


class RunRow(Base):
    """One run.

    `place` orders the queue while the run waits in it; `reserved_bytes` is the memory set aside for it; `silent_since`
    is set while its program lives but has said nothing for too long; `origin` tells what it was made from
    (`{"kind": "restore" | "clone" | "adopt", "runId"?, "checkpointId"?}`). The `error` of a paused run is why.
    """

    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_created_at", "created_at", "id"),
        Index("ix_runs_status", "status"),
        Index("ix_runs_job_id", "job_id", unique=True),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(400))
    status: Mapped[str] = mapped_column(String(20))
    task: Mapped[str] = mapped_column(String(60))
    base_model: Mapped[str] = mapped_column(String(200))
    teacher_model: Mapped[str | None] = mapped_column(String(200))
    datasets: Mapped[list[str]] = mapped_column(JSON)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)

    wish: Mapped[str] = mapped_column(String(10), default="run")
    wish_seq: Mapped[int] = mapped_column(Integer, default=0)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    num_losses: Mapped[int] = mapped_column(Integer, default=0)
    queued_at: Mapped[datetime] = mapped_column(UtcDateTime)
    place: Mapped[int | None] = mapped_column(Integer)
    reserved_bytes: Mapped[int | None] = mapped_column(BigInteger)
    silent_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    origin: Mapped[dict[str, Any] | None] = mapped_column(JSON)

    epoch: Mapped[float | None] = mapped_column(Float)
    step: Mapped[int] = mapped_column(Integer, default=0)
    total_steps: Mapped[int | None] = mapped_column(Integer)
    train_loss: Mapped[float | None] = mapped_column(Float)
    val_loss: Mapped[float | None] = mapped_column(Float)
    accuracy: Mapped[float | None] = mapped_column(Float)
    throughput: Mapped[float | None] = mapped_column(Float)
    learning_rate: Mapped[float | None] = mapped_column(Float)
    non_finite: Mapped[dict[str, str] | None] = mapped_column(JSON)
    measured: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    best_checkpoint: Mapped[str | None] = mapped_column(String(32))
    last_checkpoint: Mapped[str | None] = mapped_column(String(32))

    error: Mapped[str | None] = mapped_column(String(60))
    error_params: Mapped[dict[str, Any] | None] = mapped_column(JSON)

    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AttemptRow(Base):
    """One try at a run: a process with the run's lock and a journal. `journal_offset` is what was taken in."""

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_state", "state"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(20))
    pid: Mapped[int | None] = mapped_column(Integer)
    host: Mapped[str] = mapped_column(String(200))
    journal_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    start_step: Mapped[int] = mapped_column(Integer, default=0)
    advanced: Mapped[bool] = mapped_column(Boolean, default=False)
    gpu: Mapped[int | None] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


def row_of(spec: RunSpec, **values: Any) -> RunRow:
    """A new row of the run that `spec` describes; `values` are the columns that the spec says nothing of."""
    return RunRow(
        id=spec.run_id,
        task=spec.task,
        base_model=spec.base_model.id,
        teacher_model=spec.teacher_model.id if spec.teacher_model else None,
        datasets=[dataset.id for dataset in spec.datasets],
        spec=spec.to_json(),
        **values,
    )
