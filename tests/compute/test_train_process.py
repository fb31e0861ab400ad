"""The training program as a real child process: lock, signals, sudden death, records and exit files."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from kargah.compute.train import main
from kargah.spec.control import EXIT_REFUSED, Outcome, Wish, read_exit, write_wish
from kargah.spec.journal import read_journal
from kargah.spec.layout import RunDir
from kargah.spec.lock import FileLock, holder_pid

from .conftest import MakeRun
from .tiny import attempt

PATIENCE_SECONDS = 60


def start(run_dir: RunDir, number: int = 1) -> "subprocess.Popen[bytes]":
    number_dir = run_dir.attempt(number).root
    number_dir.mkdir(parents=True)
    with open(number_dir / "output.log", "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "kargah.compute.train", str(run_dir.root), "--attempt", str(number)],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_for(run_dir: RunDir, number: int, type: str, step: int = 0) -> None:
    """Until the journal tells of something of this type, at this step or later."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        records = read_journal(run_dir.attempt(number).journal).records
        if any(record["type"] == type and record.get("step", 0) >= step for record in records):
            return
        time.sleep(0.02)
    raise AssertionError(f"no {type} at step {step}: {run_dir.attempt(number).output.read_text()}")


def losses(*journals: Path) -> dict[int, float]:
    records = [record for path in journals for record in read_journal(path).records]
    return {record["step"]: record["loss"] for record in records if record["type"] == "metric"}


# So long that no attempt comes to the end by itself.
CONFIG = {"max_steps": 50_000, "log_every_steps": 1, "checkpoint_every_steps": 25, "eval_every_steps": 50_000}


def test_killed_then_paused_run_ends_as_if_nothing_had_happened(make_run: MakeRun) -> None:
    run_dir = make_run(**CONFIG)
    killed = start(run_dir, 1)
    wait_for(run_dir, 1, "checkpoint", 5)
    assert holder_pid(run_dir.lock) == killed.pid
    intruder = start(run_dir, 9)
    assert intruder.wait(PATIENCE_SECONDS) == EXIT_REFUSED
    assert not run_dir.attempt(9).journal.exists()
    killed.kill()
    killed.wait()
    assert holder_pid(run_dir.lock) is None
    assert read_exit(run_dir.attempt(1).exit) is None

    paused = start(run_dir, 2)
    wait_for(run_dir, 2, "metric")
    paused.terminate()
    assert paused.wait(PATIENCE_SECONDS) == 0
    ended = read_exit(run_dir.attempt(2).exit)
    assert ended is not None
    assert (ended.outcome, ended.error) == (Outcome.PAUSED, None)
    records = read_journal(run_dir.attempt(2).journal).records
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert (records[-1]["type"], records[-1]["status"], records[-1]["step"]) == ("finished", "paused", ended.step)
    assert (run_dir.checkpoints / f"step-{ended.step:08d}").is_dir()
    assert run_dir.attempt(2).output.read_bytes() == b""

    # Told to end soon, for the runs above need many steps to be caught in the middle.
    last = ended.step + 20
    _, third = attempt(run_dir, 3, end_after_step=last)
    _, whole = attempt(make_run(**CONFIG), end_after_step=last)
    seen = {**losses(run_dir.attempt(1).journal), **losses(run_dir.attempt(2).journal), **third.losses()}
    assert {step: loss for step, loss in seen.items() if step <= last} == whole.losses()


@pytest.mark.usefixtures("signals_put_back")
def test_completed_run_says_so_in_journal_and_exit_file(make_run: MakeRun) -> None:
    run_dir = make_run(max_steps=3)
    assert main([str(run_dir.root)]) == 0
    ended = read_exit(run_dir.attempt(1).exit)
    assert ended is not None
    assert (ended.outcome, ended.step) == (Outcome.COMPLETED, 3)
    last = read_journal(run_dir.attempt(1).journal).records[-1]
    assert (last["type"], last["status"]) == ("finished", "completed")
    assert last["details"].pop("peakMemoryBytes") > 50_000_000  # Python with torch takes more
    if torch.cuda.is_available():
        assert last["details"].pop("peakGpuMemoryBytes") > 0
    assert last["details"] == {"bestCheckpoint": "step-00000003"}


@pytest.mark.usefixtures("signals_put_back")
def test_failure_leaves_an_exit_file_with_its_code_and_no_traceback(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(optimizer="lion")
    assert main([str(run_dir.root), "--attempt", "1"]) == 1
    ended = read_exit(run_dir.attempt(1).exit)
    assert ended is not None
    assert (ended.outcome, ended.error, ended.params) == (Outcome.FAILED, "NOT_SUPPORTED", {"field": "optimizer"})
    records = read_journal(run_dir.attempt(1).journal).records
    assert (records[-1]["type"], records[-1]["error"]) == ("finished", "NOT_SUPPORTED")
    assert records[-2]["level"] == "error"
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("signals_put_back")
def test_wish_in_the_control_file_is_obeyed_at_the_next_step(make_run: MakeRun) -> None:
    run_dir = make_run(**CONFIG)

    def wish_soon() -> None:
        wait_for(run_dir, 1, "metric")
        write_wish(run_dir.control, 1, Wish.STOP)

    wisher = threading.Thread(target=wish_soon)
    wisher.start()
    assert main([str(run_dir.root)]) == 0
    wisher.join()
    ended = read_exit(run_dir.attempt(1).exit)
    assert ended is not None
    assert ended.outcome is Outcome.STOPPED
    assert 0 < ended.step < CONFIG["max_steps"]
    assert (run_dir.checkpoints / f"step-{ended.step:08d}").is_dir()


def test_before_the_lock_only_the_standard_library_is_imported(tmp_path: Path) -> None:
    """Asked of a child that is refused: what it has loaded by then is all it needs to say so."""
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from kargah.compute.train import main\n"
        f"code = main([{str(tmp_path)!r}])\n"
        "print(code, *sorted(set(sys.modules) - before))\n"
    )
    with FileLock(tmp_path / "lock"):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, *modules = done.stdout.split()
    assert int(code) == EXIT_REFUSED
    own = {name for name in modules if name.partition(".")[0] == "kargah"}
    assert {name.partition(".")[0] for name in modules} - {"kargah"} <= set(sys.stdlib_module_names)
    assert {name for name in own if not name.startswith("kargah.spec")} == {
        "kargah",
        "kargah.compute",
        "kargah.compute.train",
    }


def test_an_attempt_is_not_made_twice(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run()
    run_dir.attempt(1).root.mkdir(parents=True)
    run_dir.attempt(1).journal.write_text("{}\n")
    with pytest.raises(SystemExit) as caught:
        main([str(run_dir.root), "--attempt", "1"])
    assert caught.value.code == 2
