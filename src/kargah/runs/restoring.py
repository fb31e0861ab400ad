"""A run directory becomes rows again: its journals are taken in attempt by attempt, as the supervisor took them in.

Nobody is told of it step by step; who restores a run tells of the whole. What no journal says comes from `Known`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from kargah.assets.registry import Registry
from kargah.ground.events import Event, EventLog
from kargah.ground.ids import parse_rfc3339
from kargah.metrics import store
from kargah.runs.checkpoint_ids import odd_ids
from kargah.runs.checkpoint_kept import PINNED, read_kept
from kargah.runs.ingest import Ingest, RecordDamaged, mend_checkpoints
from kargah.runs.known import Known, ending_of, is_over, uses_of
from kargah.runs.ledger import Ledger, attempts_of, read_record, record_of
from kargah.runs.models import AttemptRow, RunRow, row_of
from kargah.runs.server_lines import server_lines
from kargah.runs.states import ENDED, AttemptState, RunState
from kargah.spec.control import Exit, Outcome
from kargah.spec.journal import JournalPart, Record
from kargah.spec.layout import AttemptDir, RunDir
from kargah.spec.run_spec import RunSpec

AT_ONCE = 500
SAME_MOMENT = timedelta(seconds=5)
GONE = ("attemptGone", "attemptDied")


@dataclass(slots=True)
class Restored:
    """A run that came back; `damaged` are the journals of which not everything could be read."""

    run: RunRow
    damaged: list[Path] = field(default_factory=list)


class Restorer:
    """Restores runs into the database of `registry`."""

    def __init__(self, registry: Registry) -> None:
        silent = SilentEvents(registry.database)
        self._registry = Registry(registry.database, silent, registry.home, registry.catalog)
        self._ledger = Ledger(silent, registry.home.runs)
        self._ingest = Ingest(self._ledger, self._registry)

    def restore(self, session: Session, spec: RunSpec, known: Known) -> Restored:
        """Insert a run that stands in the folder of runs, in the caller's transaction. Its record is written behind it.

        Raises `OSError` for what cannot be read. An attempt under way stays so, for the supervisor to follow it.
        """
        run_dir = self._ledger.run_dir(spec.run_id)
        run = _row(spec, known)
        session.add(run)
        session.flush()
        restored = Restored(run)
        for number in range(1, known.attempt + 1):
            self._attempt(session, restored, run_dir, known, number)
        if is_over(known):
            # Of an attempt under way the supervisor sees to it when that ends.
            mend_checkpoints(session, self._registry, run, run_dir.root)
        session.flush()
        self._checkpoint_facts(session, run, run_dir)
        self._conclude(session, run, run_dir, known)
        if run.status not in ENDED:
            self._registry.hold(session, f"run:{run.id}", uses_of(spec, known.origin))
        session.flush()
        if read_record(run_dir) != record_of(run, attempts_of(session, run.id)):
            self._ledger.keep(session, run)
        return restored

    def _attempt(self, session: Session, restored: Restored, run_dir: RunDir, known: Known, number: int) -> None:
        run, attempt_dir = restored.run, run_dir.attempt(number)
        said, first, ended = known.attempts.get(number), _first(attempt_dir.journal), ending_of(attempt_dir)
        row = AttemptRow(
            run_id=run.id,
            number=number,
            state=AttemptState.STARTING,
            host=said.host if said is not None else str(first.get("host") or ""),
            gpu=said.gpu if said is not None else None,
            journal_offset=0,
            start_step=0,
            advanced=False,
            started_at=said.started_at if said is not None else _began(attempt_dir, first, known.created_at),
        )
        session.add(row)
        session.flush()
        told: set[str] = set()
        is_whole = True
        for line in server_lines(run_dir, number):
            is_whole = is_whole and self._take(session, run, row, attempt_dir.journal, line.offset)
            store.write_log(session, run.id, number, line.level, line.message, line.details, line.timestamp, line.key)
            told.add(line.key)
        is_whole = is_whole and self._take(session, run, row, attempt_dir.journal, None)
        if not is_whole:
            restored.damaged.append(attempt_dir.journal)
        if number == known.attempt and not is_over(known):
            return
        if said is not None and said.ended_at is not None:
            row.state, row.error, row.ended_at = said.state, said.error, said.ended_at
        elif ended is not None:
            row.state, row.error, row.ended_at = AttemptState.EXITED, ended.error, parse_rfc3339(ended.at)
        else:
            row.state, row.ended_at = AttemptState.LOST, _last_sign(attempt_dir, row.started_at)
        if not is_whole and "journalDamaged" not in told:
            self._ingest.tell(session, run, row, "warning", "journalDamaged", attempt=number)
        if row.state == AttemptState.LOST and told.isdisjoint(GONE):
            self._ingest.tell(session, run, row, "warning", "attemptGone", attempt=number)

    def _take(self, session: Session, run: RunRow, row: AttemptRow, journal: Path, until: int | None) -> bool:
        """Take in what a journal says from the attempt's offset on. Returns whether all of it could be read."""
        group: list[Record] = []
        offset, is_whole = row.journal_offset, True
        for record, behind in _records(journal, row.journal_offset, until):
            if record is None:
                is_whole = False
                break
            about_checkpoints = str(record.get("type", "")).startswith("checkpoint")
            if group and (about_checkpoints or len(group) >= AT_ONCE):
                if not self._take_group(session, run, row, group, offset):
                    return False
                group = []
            group.append(record)
            offset = behind
            if about_checkpoints:
                if not self._take_group(session, run, row, group, offset):
                    return False
                group = []
        return (not group or self._take_group(session, run, row, group, offset)) and is_whole

    def _take_group(self, session: Session, run: RunRow, row: AttemptRow, group: Sequence[Record], offset: int) -> bool:
        """Take in records that end at byte `offset`; of a group with a damaged one, what stands before it."""
        quick = len(group) > 1
        before = row.journal_offset
        try:
            with session.begin_nested(), session.no_autoflush if quick else nullcontext():
                self._ingest.take(session, run, row, JournalPart(list(group), offset))
        except RecordDamaged:
            session.refresh(run)
            session.refresh(row)
            for record in group if quick else ():
                if not self._take_group(session, run, row, [record], before):
                    break
            # The supervisor comes to the same place when it follows this attempt, and finds it damaged too.
            row.journal_offset = before
            return False
        return True

    def _checkpoint_facts(self, session: Session, run: RunRow, run_dir: RunDir) -> None:
        odd, kept = odd_ids(run_dir), read_kept(run_dir)
        for row in self._registry.listed(session, ["checkpoint"], run.id):
            name = Path(row.path or "").name
            if PINNED in kept.get(name, ()):
                row.facts = {**row.facts, PINNED: True}
            if name in odd and odd[name] != row.id:
                for column in ("best_checkpoint", "last_checkpoint"):
                    if getattr(run, column) == row.id:
                        setattr(run, column, odd[name])
                row.id = odd[name]

    def _conclude(self, session: Session, run: RunRow, run_dir: RunDir, known: Known) -> None:
        last = session.get(AttemptRow, (run.id, known.attempt)) if known.attempt else None
        if last is not None and known.status in (RunState.COMPLETED, RunState.STOPPED):
            ended = ending_of(run_dir.attempt(known.attempt)) or Exit(Outcome.STOPPED, run.step)
            step = ended.step if known.step is None else known.step
            if _ended_with(known, last):
                store.drop_after(session, run.id, step)
            run.step = step
        run.status = known.status
        if known.status is RunState.PREPARING and last is not None and last.state == AttemptState.RUNNING:
            run.status = RunState.RUNNING
        if not (last is not None and last.advanced):
            run.num_losses = known.num_losses
        run.started_at = known.started_at or run.started_at


class SilentEvents(EventLog):
    """An event log that nobody reads: what is restored happened long ago."""

    def append_all(self, session: Session, topic: str, facts: Sequence[tuple[str, dict[str, Any]]]) -> list[int]:
        """Nothing is kept; the ids are none of the log's."""
        return [0] * len(facts)

    def publish(self, event: Event) -> None:
        """Nobody listens."""


def _row(spec: RunSpec, known: Known) -> RunRow:
    return row_of(
        spec,
        job_id=known.job_id,
        name=known.name,
        # Its journals are those of a run under way; what became of it is said at the end.
        status=RunState.RUNNING,
        wish=known.wish.value,
        wish_seq=known.wish_seq,
        attempt=known.attempt,
        num_losses=known.num_losses,
        place=known.place,
        reserved_bytes=known.reserved_bytes,
        origin=known.origin,
        error=known.error,
        error_params=known.error_params,
        step=0,
        queued_at=known.queued_at,
        created_at=known.created_at,
        finished_at=known.finished_at,
    )


def _records(journal: Path, offset: int, until: int | None) -> Iterator[tuple[Record | None, int]]:
    """Complete records from byte `offset` on with the byte behind each, up to byte `until`; None for a damaged one."""
    try:
        file = open(journal, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n") or (until is not None and offset >= until):
                return
            offset += len(line)
            if not line.strip(b"\0 \n"):
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield (record if isinstance(record, dict) else None), offset


def _first(journal: Path) -> Record:
    """The record with which a program said that it started; an empty one when it never did."""
    for record, _ in _records(journal, 0, None):
        if record is None:
            break
        if record.get("type") == "started":
            return record
    return {}


def _began(attempt: AttemptDir, first: Record, otherwise: datetime) -> datetime:
    try:
        return parse_rfc3339(first["at"])
    except (KeyError, ValueError, AttributeError):
        return otherwise


def _last_sign(attempt: AttemptDir, otherwise: datetime) -> datetime:
    try:
        return max(otherwise, datetime.fromtimestamp(attempt.journal.stat().st_mtime, UTC))
    except FileNotFoundError:
        return otherwise


def _ended_with(known: Known, last: AttemptRow) -> bool:
    """Whether the run ended as its last attempt did, and not later, while it was paused or waited."""
    if known.finished_at is None or last.ended_at is None or not known.attempts:
        return True
    return known.finished_at - last.ended_at < SAME_MOMENT
