"""Checkpoints are written behind training: what stands still, what a kill costs, what is kept, where each is from."""

import errno
import shutil
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kargah import __version__
from kargah.compute.attempt import read_spec
from kargah.compute.checkpoints import Checkpoint, Lineage, list_checkpoints, prune_checkpoints, remove_checkpoint
from kargah.compute.failures import Code, TrainingFailed, exit_of
from kargah.compute.hardware import versions
from kargah.compute.hooks import StepEnd
from kargah.compute.hooks.checkpoints import Checkpoints
from kargah.compute.sink import Log
from kargah.spec.control import Outcome, Wish, write_wish
from kargah.spec.journal import utc_now
from kargah.spec.layout import RunDir, checkpoint_name, write_json
from kargah.spec.lock import exclusive
from kargah.spec.manifest import read_manifest, verify_folder, write_manifest

from .conftest import MakeRun
from .test_train_process import CONFIG, PATIENCE_SECONDS, losses, start, wait_for
from .tiny import ListSink, ReactingSink, attempt

OFTEN = {**CONFIG, "checkpoint_every_steps": 10}
EVERY_THIRD = {"max_steps": 12, "log_every_steps": 1, "checkpoint_every_steps": 3, "eval_every_steps": 100}


class Held:
    """Holds the lock that a checkpoint takes its place under, from one moment of an attempt to another."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._stack = ExitStack()

    def hold(self) -> None:
        self._stack.enter_context(exclusive(self._run_dir.checkpoints_lock))

    def release(self) -> None:
        self._stack.close()


def test_training_goes_on_and_obeys_while_a_checkpoint_is_being_written(make_run: MakeRun) -> None:
    run_dir = make_run(**{**EVERY_THIRD, "checkpoint_every_steps": 4})
    held = Held(run_dir)

    def react(record: dict[str, Any]) -> None:
        if record["type"] == "started":
            held.hold()
        elif record["type"] == "metric" and record["step"] == 6:
            write_wish(run_dir.control, 1, Wish.PAUSE)
        elif record.get("key") == "pauseWished":
            # Step 4 is written but for its place.
            assert (run_dir.checkpoints / ".step-00000004.partial" / "optimizer.pt").is_file()
            assert not sink.of("checkpoint")
            held.release()

    sink = ReactingSink(react)
    ending, _ = attempt(run_dir, sink=sink)
    assert (ending.outcome, ending.step) == (Outcome.PAUSED, 7)
    (wished,) = [record for record in sink.of("log") if record["key"] == "pauseWished"]
    assert wished["details"] == {"step": 7}
    assert [record["step"] for record in sink.of("checkpoint")] == [4, 7]
    for step in (4, 7):
        verify_folder(run_dir.checkpoints / checkpoint_name(step))


def test_pause_at_a_step_that_has_its_checkpoint_writes_no_second(make_run: MakeRun) -> None:
    run_dir = make_run(**EVERY_THIRD)
    ending, sink = attempt(run_dir, end_after_step=6)
    assert (ending.outcome, ending.step) == (Outcome.PAUSED, 6)
    assert [record["step"] for record in sink.of("checkpoint")] == [3, 6]
    write_wish(run_dir.control, 1, Wish.PAUSE)
    with pytest.raises(Exception, match="paused") as interrupted:
        attempt(run_dir, 2)
    assert exit_of(interrupted.value, 6).outcome is Outcome.PAUSED
    assert [checkpoint.step for checkpoint in list_checkpoints(run_dir.checkpoints)] == [3, 6]


def test_checkpoint_in_flight_is_finished_when_training_fails(make_run: MakeRun) -> None:
    run_dir = make_run(**EVERY_THIRD)
    held = Held(run_dir)

    def react(record: dict[str, Any]) -> None:
        if record["type"] == "started":
            held.hold()
        elif record["type"] == "metric" and record["step"] == 4:
            held.release()
            raise TrainingFailed(Code.NON_FINITE_LOSS, "as if")

    with pytest.raises(TrainingFailed):
        attempt(run_dir, sink=ReactingSink(react))
    verify_folder(run_dir.checkpoints / "step-00000003")
    assert attempt(run_dir, 2)[1].of("started")[0]["startStep"] == 3


def test_what_goes_wrong_behind_ends_the_attempt_at_the_next_step(make_run: MakeRun) -> None:
    run_dir = make_run(**EVERY_THIRD)

    def react(record: dict[str, Any]) -> None:
        if record["type"] == "metric" and record["step"] == 3:
            shutil.rmtree(run_dir.checkpoints)
            run_dir.checkpoints.write_text("no folder")

    sink = ReactingSink(react)
    with pytest.raises(OSError, match="step-00000003"):
        attempt(run_dir, sink=sink)
    assert not sink.of("checkpoint")
    assert max(sink.losses()) < 12


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("boundary", ["step", "checkpoint", "end"])
def test_full_disk_is_told_as_what_it_is(make_run: MakeRun, boundary: str) -> None:
    run_dir = make_run()
    run_dir.checkpoints.mkdir()
    sink = ListSink()
    lineage = Lineage("run-1", 1, __version__, versions())
    hook = Checkpoints(sink, Log(sink), read_spec(run_dir), run_dir, ["a", "b"], lineage, lambda: None)
    written = threading.Event()

    def fill(_folder: Path) -> None:
        try:
            Path("/dev/full").write_bytes(b"x" * 100_000)
        finally:
            written.set()

    def settle(step: int) -> None:
        end = StepEnd(step, 1.0, 9, 9, 0.1, 1.0, wants_checkpoint=boundary == "checkpoint" or step == 1)
        hook.on_step_end(end)
        hook.on_settled(end)

    def train() -> None:
        with hook:
            settle(1)
            assert written.wait(PATIENCE_SECONDS)
            if boundary == "step":
                for step in range(2, 1_000_000):  # until the thread has come to its end
                    settle(step)
            elif boundary == "checkpoint":
                settle(2)

    hook.on_start(0, lambda: fill)
    with pytest.raises(OSError, match="No space left") as caught:
        train()
    assert caught.value.errno == errno.ENOSPC
    assert exit_of(caught.value, 1).error == "DISK_FULL"
    assert not list(run_dir.checkpoints.iterdir())


def test_sigkill_in_the_middle_of_a_write_costs_that_checkpoint_alone(make_run: MakeRun) -> None:
    run_dir = make_run(**OFTEN, keep_checkpoints=1000)  # so that only what takes its place asks for the lock
    child = start(run_dir, 1)
    wait_for(run_dir, 1, "checkpoint", 10)
    with exclusive(run_dir.checkpoints_lock):
        # Its next write comes to the point where it would take its place, while training goes on up to the one after.
        known = {checkpoint.name for checkpoint in list_checkpoints(run_dir.checkpoints)}
        last = max(checkpoint.step for checkpoint in list_checkpoints(run_dir.checkpoints))
        wait_for(run_dir, 1, "metric", last + 19)
        child.send_signal(signal.SIGKILL)
        child.wait()
    left = list(run_dir.checkpoints.glob(".step-*.partial"))
    assert [path.name for path in left] == [f".{checkpoint_name(last + 10)}.partial"]
    assert (left[0] / "optimizer.pt").is_file()
    assert {checkpoint.name for checkpoint in list_checkpoints(run_dir.checkpoints)} == known
    end = last + 12
    ending, second = attempt(run_dir, 2, end_after_step=end)
    assert (ending.step, second.of("started")[0]["startStep"]) == (end, last)
    assert not list(run_dir.checkpoints.glob(".*"))
    whole = make_run(**OFTEN)
    _, straight = attempt(whole, end_after_step=end)
    seen = {**losses(run_dir.attempt(1).journal), **second.losses()}
    assert {step: loss for step, loss in seen.items() if step <= end} == straight.losses()
    weights = Path(checkpoint_name(end), "model.safetensors")
    assert (run_dir.checkpoints / weights).read_bytes() == (whole.checkpoints / weights).read_bytes()


def folders(run_dir: RunDir, *steps: int) -> None:
    for step in steps:
        folder = run_dir.checkpoints / checkpoint_name(step)
        folder.mkdir(parents=True)
        write_manifest(folder, step=step, epoch=1.0, metrics={})


def steps_left(run_dir: RunDir) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run_dir.checkpoints)]


def test_what_kept_json_lists_is_not_pruned(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    folders(run_dir, 1, 2, 3, 4, 5, 6)
    write_json(
        run_dir.kept, {checkpoint_name(2): ["pinned"], checkpoint_name(3): ["run:7"], "step-00000099": ["pinned"]}
    )
    removed = prune_checkpoints(run_dir, 1, checkpoint_name(1), upto_step=5)
    assert removed == [Checkpoint(checkpoint_name(4), 4, 1.0, {})]
    # The best, the two that are listed, the newest, and what is beyond.
    assert steps_left(run_dir) == [1, 2, 3, 5, 6]
    run_dir.kept.unlink()
    prune_checkpoints(run_dir, 0, None, upto_step=6)
    assert steps_left(run_dir) == [6]


@pytest.mark.parametrize("damage", ["{", "[]", '"step-00000001"', "a folder"])
def test_nothing_is_pruned_when_kept_json_cannot_be_read(make_run: MakeRun, damage: str) -> None:
    run_dir = make_run(**EVERY_THIRD, keep_checkpoints=1, validation_split=0.0)
    if damage == "a folder":
        run_dir.kept.mkdir()
    else:
        run_dir.kept.write_text(damage)
    folders(run_dir, 1, 2)
    with pytest.raises(ValueError, match=r"kept\.json|Expecting"):
        prune_checkpoints(run_dir, 1, None, upto_step=2)
    assert steps_left(run_dir) == [1, 2]


def test_a_run_that_cannot_read_kept_json_says_so_and_goes_on(make_run: MakeRun) -> None:
    run_dir = make_run(**EVERY_THIRD, keep_checkpoints=1)
    run_dir.kept.write_text("{")
    ending, sink = attempt(run_dir)
    assert ending.outcome is Outcome.COMPLETED
    assert [record["key"] for record in sink.of("log") if record["level"] == "warning"] == ["keptDamaged"] * 3
    assert steps_left(run_dir) == [3, 6, 9, 12]


def test_pruning_waits_for_the_lock(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    folders(run_dir, 1, 2)
    thread = threading.Thread(target=prune_checkpoints, args=(run_dir, 1, None, 2))
    with exclusive(run_dir.checkpoints_lock):
        thread.start()
        write_json(run_dir.kept, {checkpoint_name(1): ["pinned"]})
    thread.join()
    assert steps_left(run_dir) == [1, 2]


def test_removing_twice_is_harmless(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    folders(run_dir, 1)
    for _ in range(2):
        remove_checkpoint(run_dir.checkpoints, checkpoint_name(1))
    assert not list(run_dir.checkpoints.iterdir())


def test_manifest_says_where_a_checkpoint_is_from(make_run: MakeRun) -> None:
    begun_at = utc_now()
    run_dir = make_run(max_steps=4, checkpoint_every_steps=2)
    attempt(run_dir, 1, end_after_step=2)
    attempt(run_dir, 2)
    for step, number in ((2, 1), (4, 2)):
        manifest = read_manifest(run_dir.checkpoints / checkpoint_name(step))
        assert manifest["runId"] == "run-1"
        assert manifest["attempt"] == number
        assert manifest["kargahVersion"] == __version__
        assert manifest["versions"] == versions()
        assert begun_at <= manifest["createdAt"] <= utc_now()
