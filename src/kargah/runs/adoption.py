"""Adoption: a run that was trained without this server, by `kargah train SPEC`, becomes one of its runs.

The directory is copied (or moved) into the data directory as a whole before the database hears of it: a copy without
rows is found by the next adoption and finished. Who may name a path: see `tickets`.
"""

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy.orm import Session

from kargah.assets.registry import Registry
from kargah.ground.errors import DiskFull, Internal, KargahError
from kargah.ground.events import EventLog
from kargah.ground.ids import new_id
from kargah.runs.errors import RunAlive, RunKnown, SpecInvalid
from kargah.runs.known import Known, is_over, known_by_files, known_by_record
from kargah.runs.ledger import Ledger, read_record
from kargah.runs.models import RunRow
from kargah.runs.restoring import Restorer
from kargah.runs.states import ENDED, RunState
from kargah.spec.layout import LOCK, SPEC, RunDir, fsync_folder, read_json, write_json
from kargah.spec.lock import holder_pid
from kargah.spec.run_spec import RunSpec, SpecError

log = logging.getLogger(__name__)

LEFT_OUT = frozenset({LOCK, "checkpoints.lock", "control.json"})
"""What belongs to the place and not to the run."""
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES})


@dataclass(frozen=True, slots=True)
class Adopted:
    """A run that was taken over. `damaged` are the numbers of attempts of whose journals a part was lost."""

    run: RunRow
    damaged: list[int]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A directory that was not taken over, and why."""

    path: Path
    error: KargahError


@dataclass(slots=True)
class Adoptions:
    """What became of the directories that were named."""

    adopted: list[Adopted] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


class Adoption:
    """Takes runs over into the database and the data directory of `registry`."""

    def __init__(self, ledger: Ledger, registry: Registry) -> None:
        self._ledger = ledger
        self._registry = registry
        self._restorer = Restorer(registry)

    def adopt(self, path: Path, *, move: bool = False) -> Adoptions:
        """Take over the run directory `path`, or every one in the folder `path`; with `move` it is there no longer.

        One that cannot be taken over is left as it is, and the others are not kept from it. Nothing is found when
        `path` is neither. Raises `OSError` when it cannot be listed.
        """
        done = Adoptions()
        for folder in run_dirs(path):
            try:
                done.adopted.append(self._adopt(RunDir(folder), move=move))
            except KargahError as error:
                done.skipped.append(Skipped(folder, error))
            except OSError as error:
                log.exception("a run could not be taken over")
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                done.skipped.append(Skipped(folder, DiskFull() if full else Internal()))
        return done

    def _adopt(self, source: RunDir, *, move: bool) -> Adopted:
        spec = read_spec(source)
        run_id = own_id(spec)
        target = self._ledger.run_dir(run_id)
        with self._registry.database.read() as session:
            if session.get(RunRow, run_id) is not None:
                raise RunKnown(id=run_id)
        for place in (source, target):
            if holder_pid(place.lock) is not None:
                raise RunAlive(id=run_id)
        known = _known(source, spec)
        undo = self._bring(source, target, replace(spec, run_id=run_id), move=move)
        try:
            with self._registry.database.write() as session:
                if session.get(RunRow, run_id) is not None:
                    raise RunKnown(id=run_id)
                restored = self._restorer.restore(session, replace(spec, run_id=run_id), known)
                self._tell(session, restored.run)
        except BaseException:
            undo()
            raise
        if move and source.root != target.root:
            shutil.rmtree(source.root, ignore_errors=True)
        return Adopted(restored.run, [int(journal.parent.name) for journal in restored.damaged])

    def _bring(self, source: RunDir, target: RunDir, spec: RunSpec, *, move: bool) -> Callable[[], None]:
        """Put the directory in its place. Returns how to take that back."""
        if target.root.exists():
            # It stands there already: it was trained there, or an adoption died before it was committed.
            return lambda: None
        runs = target.root.parent
        if move and source.root.stat().st_dev == runs.stat().st_dev and not source.root.is_symlink():
            os.replace(source.root, target.root)
            undo: Callable[[], None] = lambda: os.replace(target.root, source.root)  # noqa: E731
        else:
            copy = runs / f".{spec.run_id}.adopting"
            shutil.rmtree(copy, ignore_errors=True)
            try:
                copy_run(source.root, copy)
                os.replace(copy, target.root)
            except OSError:
                shutil.rmtree(copy, ignore_errors=True)
                raise
            undo = lambda: shutil.rmtree(target.root, ignore_errors=True)  # noqa: E731
        fsync_folder(runs)
        if read_json(target.spec).get("runId") != spec.run_id:  # type: ignore[union-attr]
            write_json(target.spec, spec.to_json())
        return undo

    def _tell(self, session: Session, run: RunRow) -> None:
        events = self._ledger.events
        tell_state(session, events, run)
        for row in self._registry.listed(session, ["checkpoint"], run.id):
            events.append(session, "assets", "state", {"kind": row.kind, "id": row.id, "status": row.status})


def tell_state(session: Session, events: EventLog, run: RunRow) -> None:
    """One event says where a run stands, for all that happened before."""
    final = run.status in ENDED
    state = {"runId": run.id, "status": str(run.status), "final": final, "error": run.error}
    events.append(session, f"runs:{run.id}", "state", state)


def run_dirs(path: Path) -> list[Path]:
    """`path` when it is a run directory, else every run directory right below it."""
    if (path / SPEC).is_file():
        return [path]
    return sorted(child for child in path.iterdir() if not child.name.startswith(".") and (child / SPEC).is_file())


def read_spec(run_dir: RunDir) -> RunSpec:
    """The spec of a run directory. Raises `SpecInvalid`."""
    try:
        return RunSpec.from_json(read_json(run_dir.spec))
    except SpecError as error:
        raise SpecInvalid(field=error.field) from error
    except ValueError as error:
        raise SpecInvalid(field=SPEC) from error


def own_id(spec: RunSpec) -> str:
    """The run's id as the server's ids are: the spec's own, or one that is made of the whole spec."""
    if len(spec.run_id) == 32 and set(spec.run_id) <= set("0123456789abcdef"):
        return spec.run_id
    text = json.dumps(spec.to_json(), sort_keys=True, ensure_ascii=False)
    return uuid.uuid5(uuid.NAMESPACE_OID, text).hex


def copy_run(source: Path, target: Path) -> None:
    """Copy a run directory; files of checkpoints, which never change, are linked where the disk allows it.

    Links that lead out of it and whatever is no file or folder are left out. Raises `OSError`.
    """
    for base, folders, names in os.walk(source):
        here = target / Path(base).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        linked = "checkpoints" in here.relative_to(target).parts
        folders[:] = [
            name for name in folders if not name.startswith(".") and not os.path.islink(os.path.join(base, name))
        ]
        for name in names:
            file = Path(base, name)
            outside = file.is_symlink() or not file.is_file()
            if outside or name.startswith(".") or (base == str(source) and name in LEFT_OUT):
                continue
            _copy_file(file, here / name, linked=linked)
        fsync_folder(here)


def _copy_file(source: Path, target: Path, *, linked: bool) -> None:
    if linked:
        try:
            os.link(source, target)
            return
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
    shutil.copy2(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def _known(run_dir: RunDir, spec: RunSpec) -> Known:
    """What its directory says; the record of another server where that saw the run's end, or let it rest."""
    known = known_by_files(run_dir, spec, is_alive=False)
    record = read_record(run_dir)
    if record is not None:
        try:
            recorded = known_by_record(record)
        except (KeyError, TypeError, ValueError):
            log.warning("the record of run %s is damaged", run_dir.root.name)
        else:
            if is_over(recorded) and recorded.status is not RunState.QUEUED:
                known = replace(recorded, job_id=new_id())
            else:
                known = replace(known, name=recorded.name, created_at=recorded.created_at, attempts=recorded.attempts)
    return replace(known, origin={"kind": "adopt"}, place=None, reserved_bytes=None)
