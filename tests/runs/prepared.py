"""Runs of the tiny model through a real server, as the tests start, freeze and read them."""

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from living import BERT, PATIENCE_SECONDS, Living, Told

from kargah.spec.layout import RunDir

STEPS = 480
EVALUATED = [120, 240, 360, 480]
CONFIG: dict[str, Any] = {
    "maxSteps": STEPS,
    "batchSize": 24,
    "learningRate": 3e-3,
    "maxLength": 24,
    "seed": 3,
    "logEverySteps": 1,
    "evalEverySteps": 120,
    "checkpointEverySteps": 60,
    "keepCheckpoints": 2,
}


@dataclass(frozen=True)
class Prepared:
    """The shared server with a model and a data set that are ready."""

    live: Living
    opinions: str

    def start(self, **body: Any) -> str:
        """Start a run. Returns its id."""
        asked = {"baseModel": BERT, "datasets": [self.opinions], "config": CONFIG, **body}
        return str(self.live.client.post("/api/training/start", asked)["runId"])

    def stream(self, run_id: str) -> str:
        return f"/api/training/stream/{run_id}"

    def status(self, run_id: str, **params: Any) -> dict[str, Any]:
        return dict(self.live.client.get(f"/api/training/status/{run_id}", **params))

    def until_step(self, run_id: str, step: int) -> None:
        """Until a run's program lives and has logged this step."""
        self.live.follow(self.stream(run_id), lambda data: (data.get("step") or 0) >= step)

    def until_attempt(self, run_id: str, number: int) -> None:
        """Until this attempt was begun; its first event may have passed before anyone listens."""
        until = time.monotonic() + PATIENCE_SECONDS
        while self.status(run_id)["attempt"]["number"] < number:
            assert time.monotonic() < until
            time.sleep(0.05)

    def freeze(self, run_id: str) -> int:
        """Stop a run's program where it is, so that it cannot end meanwhile. Returns its process id."""
        pid = int(self.status(run_id)["attempt"]["pid"])
        os.kill(pid, signal.SIGSTOP)
        assert not self.folder(run_id).attempt(self.status(run_id)["attempt"]["number"]).exit.exists()
        return pid

    def folder(self, run_id: str) -> RunDir:
        return RunDir(self.live.home / "runs" / run_id)

    def losses(self, run_id: str) -> dict[int, float]:
        """Every logged step's loss, by the export."""
        rows = [row for row in self.export(run_id) if row["loss"] is not None]
        assert len(rows) == len({row["step"] for row in rows})
        return {row["step"]: row["loss"] for row in rows}

    def export(self, run_id: str) -> list[dict[str, Any]]:
        """Every stored step."""
        with self.live.open_stream(f"/api/analysis/training/export/{run_id}", format="json") as answer:
            answer.read()
            return list(answer.json())


@dataclass(frozen=True)
class Finished:
    """A run that came to its end undisturbed, and all that its stream told from the start."""

    run_id: str
    told: list[Told]
