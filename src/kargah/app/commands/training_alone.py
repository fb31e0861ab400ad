"""A spec file trained with no server: the training program as a child, which Ctrl-C tells to pause."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import typer

from kargah.app.commands.console import EXIT_INTERRUPTED, EXIT_USED_WRONGLY, fail, print_json, say, tell
from kargah.runs.executor import PROGRAM, child_environment
from kargah.spec.control import read_exit
from kargah.spec.layout import RunDir, write_json
from kargah.spec.run_spec import RunSpec, SpecError


def train_alone(spec_file: Path, run_dir: Path | None, as_json: bool) -> NoReturn:
    """Train and end with the program's exit code. A directory with checkpoints goes on from the last one."""
    spec = _read(spec_file)
    root = RunDir((run_dir or Path.cwd() / "runs" / spec.run_id).absolute())
    number = (root.attempt_numbers() or [0])[-1] + 1
    root.attempt(number).root.mkdir(parents=True, exist_ok=True)
    write_json(root.spec, spec.to_json())
    tell(say("trainingIn", path=str(root.root)), to_errors=True)
    command = [sys.executable, "-m", PROGRAM, str(root.root), "--attempt", str(number)]
    # In a session of its own, so that Ctrl-C reaches it once, by us, and as the signal that it obeys from its start on.
    with subprocess.Popen(command, env=child_environment(), stdout=sys.stderr, start_new_session=True) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            _pause(child)
            fail(say("alonePaused", path=str(root.root)), EXIT_INTERRUPTED)
        except SystemExit:
            _pause(child)
            raise
    ended = read_exit(root.attempt(number).exit)
    if as_json:
        outcome = {"outcome": ended.outcome if ended else None, "error": ended.error if ended else None}
        print_json({"runDir": str(root.root), **outcome})
    elif ended is not None:
        tell(say("aloneEnded", outcome=say(f"status.{ended.outcome.value}"), step=ended.step))
    raise typer.Exit(code if code >= 0 else 128 - code)


def _read(spec_file: Path) -> RunSpec:
    try:
        return RunSpec.from_json(json.loads(spec_file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        problem = f"{error.field}: {error.problem}" if isinstance(error, SpecError) else str(error)
        fail(say("badSpec", file=str(spec_file), problem=problem), EXIT_USED_WRONGLY)


def _pause(child: subprocess.Popen[bytes]) -> None:
    """Let the program write a checkpoint and end; a second Ctrl-C ends it at once (its checkpoints are whole)."""
    child.terminate()
    tell(say("alonePausing"), to_errors=True)
    try:
        child.wait()
    except KeyboardInterrupt:
        child.kill()
        with contextlib.suppress(KeyboardInterrupt):
            child.wait()
