"""The states of a run: the table pair by pair, and who may move it."""

from itertools import product

import pytest
from sqlalchemy import update

from kargah.app.platform import Platform
from kargah.ground.errors import InvalidState
from kargah.ground.ids import new_id, now
from kargah.runs.models import RunRow
from kargah.runs.states import ACTIVE, ENDED, TRANSITIONS, RunState, transition

# Section 4 of the contract, and that a run may end before it obeys.
ALLOWED = {
    "queued": {"preparing", "stopping", "failed"},
    "preparing": {"running", "pausing", "stopping", "failed"},
    "running": {"completed", "failed", "stopped", "pausing", "stopping"},
    "pausing": {"paused", "stopping", "completed", "failed"},
    "paused": {"queued", "stopping"},
    "stopping": {"stopped", "completed", "failed"},
    "stopped": set(),
    "completed": set(),
    "failed": set(),
}


def put_run(platform: Platform, status: RunState, **values: object) -> str:
    """A run in some state. Returns its id."""
    run_id = new_id()
    row = RunRow(
        **{
            "id": run_id,
            "job_id": new_id(),
            "name": "اجرا",
            "status": status,
            "task": "text-classification",
            "base_model": "org/model",
            "datasets": ["org/data"],
            "spec": {"config": {}},
            "wish": "run",
            "wish_seq": 0,
            "attempt": 0,
            "num_losses": 0,
            "step": 0,
            "queued_at": now(),
            "created_at": now(),
            **values,
        }
    )
    with platform.database.write() as session:
        session.add(row)
    return run_id


def test_the_table_pair_by_pair(platform: Platform) -> None:
    platform.supervisor.stop()
    for before, after in product(RunState, RunState):
        run_id = put_run(platform, before)
        newest = platform.events.last_id()
        with platform.database.write() as session:
            run = session.get_one(RunRow, run_id)
            if after.value in ALLOWED[before.value]:
                transition(session, platform.ledger, run, after)
                assert run.status == after, (before, after)
                assert (run.finished_at is not None) == (after in ENDED)
            else:
                with pytest.raises(InvalidState):
                    transition(session, platform.ledger, run, after)
                assert run.status == before
        told = platform.events.after([f"runs:{run_id}"], newest)
        assert [(event.data["status"], event.data["final"]) for event in told] == (
            [(after.value, after in ENDED)] if after.value in ALLOWED[before.value] else []
        )


def test_sets_of_states() -> None:
    assert {state.value: {to.value for to in tos} for state, tos in TRANSITIONS.items()} == ALLOWED
    assert {state for state, tos in TRANSITIONS.items() if not tos} == ENDED
    assert ACTIVE.isdisjoint(ENDED | {RunState.QUEUED, RunState.PAUSED})


def test_who_moved_it_first_wins(platform: Platform) -> None:
    """A row read before somebody else moved the run does not move it again."""
    platform.supervisor.stop()
    run_id = put_run(platform, RunState.RUNNING)
    with platform.database.write() as session:
        run = session.get_one(RunRow, run_id)
        session.execute(
            update(RunRow).where(RunRow.id == run_id).values(status="stopping"),
            execution_options={"synchronize_session": False},
        )
        with pytest.raises(InvalidState):
            transition(session, platform.ledger, run, RunState.COMPLETED)
