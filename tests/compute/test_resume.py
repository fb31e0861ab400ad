"""A run that was paused, killed or restored goes on as if nothing had happened: the same losses, bit for bit."""

import signal
from dataclasses import replace
from typing import Any

import pytest

from kargah.compute.attempt import read_spec
from kargah.compute.failures import Code, TrainingFailed
from kargah.spec.control import Outcome, Wish, write_wish
from kargah.spec.layout import RunDir, write_json

from .conftest import MakeRun
from .tiny import NEGATIVE, POSITIVE, ListSink, ReactingSink, attempt, tree_bytes

# 90 rows in batches of 4 are 23 batches, the last of 2 rows; accumulated by 3 they are 8 steps, the last of 2 batches.
CONFIG = {
    "max_steps": 20,
    "batch_size": 4,
    "gradient_accumulation_steps": 3,
    "log_every_steps": 5,
    "eval_every_steps": 6,
    "checkpoint_every_steps": 100,
    "warmup_steps": 3,
    "weight_decay": 0.01,
}


@pytest.fixture(scope="module")
def straight(make_run: MakeRun) -> tuple[RunDir, ListSink]:
    run_dir = make_run(**CONFIG)
    return run_dir, attempt(run_dir)[1]


def facts(*sinks: ListSink) -> dict[str, dict[int, object]]:
    """What must be equal: every loss, norm, rate and evaluation by its step."""
    records = [record for sink in sinks for record in sink.records]
    fields = {
        "metric": ("loss", "gradNorm", "learningRate", "epoch"),
        "evaluation": ("valLoss", "accuracy", "metrics"),
    }
    return {
        type: {record["step"]: [record[name] for name in names] for record in records if record["type"] == type}
        for type, names in fields.items()
    }


# Mid-epoch inside a logging window, at the end of an epoch, right behind it, and at an evaluation.
@pytest.mark.parametrize("paused_at", [3, 8, 9, 12])
def test_pause_and_resume_equal_running_straight(
    make_run: MakeRun, straight: tuple[RunDir, ListSink], paused_at: int
) -> None:
    run_dir = make_run(**CONFIG)
    ending, first = attempt(run_dir, 1, end_after_step=paused_at)
    assert (ending.outcome, ending.step) == (Outcome.PAUSED, paused_at)
    assert first.of("checkpoint")[-1]["step"] == paused_at
    ending, second = attempt(run_dir, 2)
    assert (ending.outcome, ending.step) == (Outcome.COMPLETED, 20)
    assert second.of("started")[0]["startStep"] == paused_at
    assert facts(first, second) == facts(straight[1])
    assert end_bytes(run_dir, 20) == end_bytes(straight[0], 20)


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def end_bytes(run_dir: RunDir, step: int) -> dict[str, bytes]:
    return tree_bytes(run_dir.checkpoints / f"step-{step:08d}", *FILES)


# Every schedule, both samplers, every optimizer; with dropout, accumulation and the last batch of an epoch small.
@pytest.mark.parametrize(
    ("schedule", "batching", "optimizer", "paused_at"),
    [
        ("linear", "bucketed", "adamw", 5),
        ("cosine", "random", "adam", 9),
        ("cosine_with_restarts", "bucketed", "adagrad", 8),
        ("polynomial", "random", "adafactor", 3),
        ("constant", "bucketed", "sgd", 10),
        ("constant_with_warmup", "random", "rmsprop", 1),
        ("inverse_sqrt", "bucketed", "adafactor", 11),
    ],
)
def test_bit_for_bit_with_every_schedule_sampler_and_optimizer(
    make_run: MakeRun, schedule: str, batching: str, optimizer: str, paused_at: int
) -> None:
    config = {
        **CONFIG, "max_steps": 12, "log_every_steps": 2, "lr_scheduler": schedule, "batching": batching,
        "optimizer": optimizer, "dropout": 0.2, "enable_early_stopping": True, "early_stopping_patience": 9,
    }  # fmt: skip
    whole, broken = make_run(**config), make_run(**config)
    _, straight = attempt(whole)
    _, first = attempt(broken, 1, end_after_step=paused_at)
    _, second = attempt(broken, 2)
    assert second.of("started")[0]["startStep"] == paused_at
    assert facts(first, second) == facts(straight)
    assert end_bytes(broken, 12) == end_bytes(whole, 12)


def test_a_run_that_is_paused_after_every_step_ends_as_the_unbroken_one(make_run: MakeRun) -> None:
    config = {**CONFIG, "max_steps": 9, "batching": "bucketed", "eval_every_steps": 3, "enable_early_stopping": True}
    whole, broken = make_run(**config), make_run(**config)
    _, straight = attempt(whole)
    sinks = [attempt(broken, step, end_after_step=step)[1] for step in range(1, 10)]
    assert [sink.of("started")[0]["startStep"] for sink in sinks] == list(range(9))
    assert facts(*sinks) == facts(straight)
    assert end_bytes(broken, 9) == end_bytes(whole, 9)


@pytest.mark.parametrize("way", ["control file", "SIGTERM", "SIGINT"])
@pytest.mark.usefixtures("signals_put_back")
def test_pause_by_file_and_by_signal_is_acknowledged_at_the_next_step(make_run: MakeRun, way: str) -> None:
    config = {**CONFIG, "max_steps": 9, "log_every_steps": 1}
    whole, broken = make_run(**config), make_run(**config)

    def wish(record: dict[str, Any]) -> None:
        if record["type"] == "metric" and record["step"] == 3:  # told after the wish of this step was looked at
            if way == "control file":
                write_wish(broken.control, 1, Wish.PAUSE)
            else:
                signal.raise_signal(signal.Signals[way])

    ending, first = attempt(broken, 1, sink=ReactingSink(wish), signals=True)
    assert (ending.outcome, ending.step) == (Outcome.PAUSED, 4)
    (told,) = [record for record in first.of("log") if record["key"] == "pauseWished"]
    assert told["details"] == {"step": 4}
    write_wish(broken.control, 2, Wish.RUN)
    _, second = attempt(broken, 2)
    _, straight = attempt(whole)
    assert facts(first, second) == facts(straight)
    assert end_bytes(broken, 9) == end_bytes(whole, 9)


def test_restored_run_continues_as_the_first_did(make_run: MakeRun, straight: tuple[RunDir, ListSink]) -> None:
    first = make_run(**CONFIG)
    _, before = attempt(first, 1, end_after_step=7)
    restored = make_run(**CONFIG, spec={"resume_from": str(first.checkpoints / "step-00000007")})
    ending, after = attempt(restored)
    assert ending.step == 20
    assert facts(before, after) == facts(straight[1])


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(
    make_run: MakeRun, straight: tuple[RunDir, ListSink]
) -> None:
    run_dir = make_run(**{**CONFIG, "checkpoint_every_steps": 4, "keep_checkpoints": 9})
    attempt(run_dir, 1, end_after_step=10)
    weights = run_dir.checkpoints / "step-00000010" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (run_dir.checkpoints / ".step-00000011.partial").mkdir()
    ending, sink = attempt(run_dir, 2)
    assert sink.of("started")[0]["startStep"] == 8
    warnings = [record["message"] for record in sink.of("log") if record["level"] == "warning"]
    assert any("step-00000010/model.safetensors" in message for message in warnings)
    assert not list(run_dir.checkpoints.glob(".*"))
    assert ending.step == 20
    expected = facts(straight[1])["metric"]
    assert {step: expected[step] for step in (10, 15, 20)} == facts(sink)["metric"]


def test_early_stopping_does_not_forget_its_patience(make_run: MakeRun) -> None:
    options = {
        "max_steps": 40,
        "learning_rate": 1e-9,  # nothing improves
        "eval_every_steps": 2,
        "enable_early_stopping": True,
        "early_stopping_patience": 5,
        "early_stopping_threshold": 0.2,
    }
    straight = make_run(**options)
    ending, _ = attempt(straight)
    run_dir = make_run(**options)
    attempt(run_dir, 1, end_after_step=7)
    resumed, _ = attempt(run_dir, 2)
    assert ending.step == resumed.step == 12
    assert end_bytes(run_dir, 12) == end_bytes(straight, 12)


def test_stop_keeps_a_checkpoint_and_logs_the_last_step(make_run: MakeRun) -> None:
    run_dir = make_run(**CONFIG)
    ending, sink = attempt(run_dir, 1, end_after_step=7, wish=Wish.STOP)
    assert (ending.outcome, ending.step) == (Outcome.STOPPED, 7)
    assert [record["step"] for record in sink.of("metric")] == [5, 7]
    assert sink.of("checkpoint")[-1]["name"] == "step-00000007"


def test_attempt_after_the_last_step_only_says_so(straight: tuple[RunDir, ListSink]) -> None:
    ending, sink = attempt(straight[0], 2)
    assert (ending.outcome, ending.step) == (Outcome.COMPLETED, 20)
    assert not sink.of("metric")
    assert not sink.of("checkpoint")


def test_labels_that_changed_under_a_checkpoint_are_refused(make_run: MakeRun) -> None:
    run_dir = make_run(**CONFIG)
    attempt(run_dir, 1, end_after_step=2)
    spec = read_spec(run_dir)
    changed = replace(spec.datasets[0], labels=[POSITIVE, NEGATIVE, "سومی"])
    write_json(run_dir.spec, replace(spec, datasets=[changed]).to_json())
    with pytest.raises(TrainingFailed) as caught:
        attempt(run_dir, 2)
    assert caught.value.code is Code.DATA_DAMAGED
