"""The drill with three kills: of the server, of the training program, of both. `make drill` has a hundred."""

import json
import subprocess
import sys
from typing import Any

import pytest
from living import TESTS


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the drill found; it ends with 1 when anything did not hold."""
    file = tmp_path_factory.mktemp("drill") / "found.json"
    command = [sys.executable, "-m", "bench.drill", "--kills", "3", "--runs", "1", "--seed", "5", "--json", str(file)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def test_three_kills_are_one_of_each_kind(drilled: dict[str, Any]) -> None:
    assert sorted(blow["target"] for blow in drilled["blows"]) == ["both", "program", "server"]
    assert sum(verdict["num_kills"] for verdict in drilled["verdicts"]) >= 3
    assert any(verdict["num_attempts"] > 1 for verdict in drilled["verdicts"])


def test_nothing_is_lost_doubled_or_left_behind(drilled: dict[str, Any]) -> None:
    assert drilled["allViolations"] == []
    for verdict in drilled["verdicts"]:
        assert verdict["status"] == "completed"
        assert (verdict["num_lost"], verdict["num_doubled"]) == (0, 0)
        assert verdict["num_steps"] == 400
        assert verdict["num_checkpoints"] >= 1
        assert verdict["num_events"] > verdict["num_steps"]
    assert drilled["zombies"] == []
    assert drilled["orphans"] == {}


def test_somebody_looked_all_the_time(drilled: dict[str, Any]) -> None:
    assert drilled["num_looks"] > 0
