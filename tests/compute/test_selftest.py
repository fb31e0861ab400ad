"""The self-test's program, run as one: what it finds, a device tested, and how it ends."""

import json
import math
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from kargah.compute.selftest import speed
from kargah.compute.selftest.training import COMPARED_STEPS, LABELS, QUICK_STEPS, sentences

MINI = Path(str(resources.files("kargah.assets").joinpath("builtin", "mini_fa")))
PROGRAM = [sys.executable, "-m", "kargah.compute.selftest"]
CPU = torch.device("cpu")


def _run(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """What the program prints of the processor."""
    code, records = _run("--device", "cpu", "--model", str(MINI), "--quick")
    assert code == 0
    return records


def _one(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [record for record in records if record["type"] == kind]
    return found


def test_devices_are_listed_with_versions_and_reasons() -> None:
    code, (machine,) = _run()
    assert code == 0
    assert machine["devices"][0] == "cpu"
    assert machine["trainsOn"] in machine["devices"]
    assert machine["versions"]["torch"] == torch.__version__
    for name in ("cuda", "rocm", "cudnn", "nvidiaDriver"):
        assert (machine[name] is None) == (name in machine["unmeasured"]), name


def test_stages_are_told_before_their_results_and_nothing_fails(records: list[dict[str, Any]]) -> None:
    kinds = [record["type"] for record in records]
    stages = [record["stage"] for record in records if record["type"] == "stage"]
    assert kinds[0] == "device"
    assert kinds[-1] == "finished"
    assert stages == ["gemm float32", "gemm bfloat16", "gemm float16", "bandwidth", "training"]
    assert "failed" not in kinds
    assert kinds[-5:-1] == ["training", "reload", "repeat", "agreement"]


def test_products_are_right_and_what_is_not_native_has_a_reason(records: list[dict[str, Any]]) -> None:
    products = {record["precision"]: record for record in records if record["type"] == "gemm"}
    assert products["float32"]["isRight"]
    assert products["float32"]["bestGflops"] >= products["float32"]["medianGflops"] > 0
    assert products["float16"]["bestGflops"] is None
    assert products["float16"]["unmeasured"]["bestGflops"]
    is_native = _one(records, "device")["bfloat16Native"]
    assert (products["bfloat16"]["bestGflops"] is not None) == is_native


def test_training_learns_repeats_and_survives_saving(records: list[dict[str, Any]]) -> None:
    training = _one(records, "training")
    losses = training["losses"]
    assert len(losses) == QUICK_STEPS
    assert losses[0] == pytest.approx(math.log(len(LABELS)), abs=0.3)
    assert training["lastLoss"] == pytest.approx(sum(losses[-COMPARED_STEPS:]) / COMPARED_STEPS)
    assert training["lastLoss"] < 0.7 * training["firstLoss"]
    assert training["falls"]
    assert training["peakMemoryBytes"] > MINI.joinpath("model.safetensors").stat().st_size
    assert training["samplesPerSecond"] == pytest.approx(training["batchSize"] / training["medianStepSeconds"])
    assert _one(records, "reload") | {"saveSeconds": 0} == {
        "type": "reload",
        "isIdentical": True,
        "maxDifference": 0.0,
        "saveSeconds": 0,
    }
    assert _one(records, "repeat")["isIdentical"]
    steady = _one(records, "agreement")["losses"]
    assert len(steady) == QUICK_STEPS
    assert steady != losses  # no dropout


def test_a_failed_stage_is_told_and_does_not_end_the_others(tmp_path: Path) -> None:
    damaged = tmp_path / "model"
    damaged.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (damaged / name).write_bytes((MINI / name).read_bytes())
    (damaged / "model.safetensors").write_bytes((MINI / "model.safetensors").read_bytes()[:1000])
    code, records = _run("--device", "cpu", "--model", str(damaged), "--quick")
    assert code == 0
    failed = _one(records, "failed")
    assert (failed["stage"], failed["error"]) == ("training", "MODEL_DAMAGED")
    assert _one(records, "bandwidth")["bestBytesPerSecond"] > 0
    assert records[-1]["type"] == "finished"


@pytest.mark.parametrize(
    "arguments",
    [("--device", "cuda:99", "--model", str(MINI)), ("--device", "cpu"), ("--device", "cpu", "--model", "x")],
)
def test_what_is_not_there_is_used_wrongly(arguments: tuple[str, ...]) -> None:
    code, records = _run(*arguments)
    assert (code, records) == (2, [])


def test_the_program_ends_with_its_parent() -> None:
    process = subprocess.Popen(
        [*PROGRAM, "--device", "cpu", "--model", str(MINI), "--with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["type"] == "device"
    process.stdin.close()
    kinds = [json.loads(line)["type"] for line in process.stdout]
    assert process.wait() == 1
    process.stdout.close()
    assert "finished" not in kinds


def test_a_wrong_product_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to bfloat16 is far beyond what float32 may err."""
    assert speed.gemm(CPU, "float32", None, speed.QUICK)["isRight"]
    monkeypatch.setitem(speed.PRECISIONS, "float32", torch.bfloat16)
    rough = speed.gemm(CPU, "float32", None, speed.QUICK)
    assert not rough["isRight"]
    assert rough["relativeError"] > speed.TOLERANCES["float32"]


def test_the_built_in_sentences_are_balanced() -> None:
    rows = sentences()
    assert {rows.labels.count(label) for label in LABELS} == {len(rows) // 2}
    assert len(set(rows.texts)) == len(rows)
