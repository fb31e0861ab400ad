"""One attempt at a run, from its spec to its ending. This is where data, model, teacher, trainer and hooks meet.

It knows a run directory and a sink, but no process, no signal and no lock: those are `train.py`'s, and tests call this.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from kargah import __version__
from kargah.compute.arguments import Plan, check_spec, optimizer_of, plan_steps, training_arguments
from kargah.compute.checkpoints import Checkpoint, Lineage, newest_sound, read_checkpoint, remove_leftovers
from kargah.compute.data import Rows, TrainingData, read_training_data
from kargah.compute.distil import cross_entropy_sum, distillation_objective, teacher_logits
from kargah.compute.encode import EncodedRows, encode_rows
from kargah.compute.failures import Code, Interrupted, TrainingFailed
from kargah.compute.forward import logits_of
from kargah.compute.hardware import Hardware, prepare_hardware, versions
from kargah.compute.heartbeat import Heartbeat
from kargah.compute.hooks import Hook, StepEnd
from kargah.compute.hooks.beats import Beats
from kargah.compute.hooks.cadence import Cadence
from kargah.compute.hooks.checkpoints import Checkpoints
from kargah.compute.hooks.control import OUTCOME_OF, Control
from kargah.compute.hooks.early_stopping import EarlyStopping
from kargah.compute.hooks.evaluations import Evaluations
from kargah.compute.hooks.window import LogWindow, Stopwatch
from kargah.compute.model import (
    be_silent,
    load_trained,
    max_positions,
    num_embeddings,
    num_trainable_parameters,
    takes_token_types,
)
from kargah.compute.scores import Evaluation, evaluate_logits
from kargah.compute.sink import Log, Sink
from kargah.compute.starting import Start, starting_model
from kargah.compute.trainer import HookedTrainer, Objective
from kargah.compute.wishes import Wishes
from kargah.spec.control import Outcome
from kargah.spec.layout import RunDir, read_json
from kargah.spec.manifest import FolderDamaged
from kargah.spec.run_spec import RunSpec

UNKNOWN_SHARE_TO_WARN = 0.05


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended by itself, after `step` optimiser steps of the run.

    `model` is the one to use: the best where early stopping looks for it, else the last. `best_checkpoint` names the
    best evaluated checkpoint on disk.
    """

    outcome: Outcome
    step: int
    best_checkpoint: str | None
    model: PreTrainedModel


class Progress(Hook):
    """How far the attempt is; an ending that is an error reads it too."""

    def __init__(self) -> None:
        self.step = 0

    def on_step_end(self, end: StepEnd) -> None:
        self.step = end.step


def run_attempt(run_dir: RunDir, number: int, sink: Sink, wishes: Wishes, progress: Progress) -> Ending:
    """Train attempt `number` of the run to its end, telling `sink` everything except that it finished.

    Goes on from the newest sound checkpoint of the run, else from the spec's `resumeFrom`, else from the base model.
    Raises `TrainingFailed` and `Interrupted`, and whatever the libraries raise.
    """
    be_silent()
    heartbeat = Heartbeat(run_dir.attempt(number).heartbeat)
    heartbeat.beat()
    log = Log(sink)
    spec = read_spec(run_dir)
    check_spec(spec)
    if spec.config.lr_scheduler == "constant" and spec.config.warmup_steps:
        log.warning("noWarmup", field="warmupSteps")
    hardware = prepare_hardware(spec.config.mixed_precision)
    resume = _find_resume_point(run_dir, spec, log)
    progress.step = resume.checkpoint.step if resume else 0

    def get_on() -> None:
        heartbeat.beat()
        outcome = OUTCOME_OF.get(wishes.present())
        if outcome is not None:
            raise Interrupted(outcome)

    get_on()
    data = read_training_data(spec, log)
    if spec.config.enable_early_stopping and not len(data.validation):
        raise TrainingFailed(Code.SPEC_INVALID, "early stopping needs validation rows", field="enableEarlyStopping")
    get_on()
    objective, judged = _objective(spec, run_dir, data, hardware, log, get_on)
    set_seed(spec.config.seed)
    folder = resume.folder if resume else None
    start = starting_model(spec, folder, data, hardware, log, get_on)
    model = start.model
    log.info(
        "modelLoaded",
        kind=model.config.model_type,
        numParameters=start.num_parameters,
        numTrainableParameters=num_trainable_parameters(model),
    )
    get_on()
    train_rows, validation_rows = _encode(spec, start.tokenizer, model, data, log, get_on)
    train_rows.teacher_logits = judged
    get_on()

    plan = plan_steps(spec.config, len(train_rows))
    _tell_start(sink, number, progress.step, plan, data, hardware, start)
    stopwatch = Stopwatch()
    lineage = Lineage(spec.run_id, number, __version__, versions())
    checkpoints = Checkpoints(sink, log, spec, run_dir, data.labels, lineage, heartbeat.beat)
    # Order matters: a wish first (the last step outweighs it), checkpoints last, for they keep what was decided.
    hooks: list[Hook] = [
        progress,
        Beats(heartbeat),
        Control(wishes, log),
        Cadence(spec.config, plan.total_steps, can_evaluate=len(validation_rows) > 0),
        LogWindow(sink, stopwatch, spec.config.log_every_steps),
        Evaluations(sink, log),
        *_early_stopping(spec, log),
        checkpoints,
    ]

    def evaluate_now() -> Evaluation:
        logits = logits_of(model, validation_rows, hardware.device, between=heartbeat.beat)
        return evaluate_logits(logits, validation_rows.labels)

    trainer = HookedTrainer(
        model=model,
        tokenizer=start.tokenizer,
        weights=start.weights,
        save_weights=start.save,
        arguments=training_arguments(spec.config, plan, hardware, run_dir.checkpoints),
        optimizer=optimizer_of(spec.config),
        embedding_learning_rate=spec.config.embedding_learning_rate,
        bucketed=spec.config.batching == "bucketed",
        rows=train_rows,
        plan=plan,
        objective=objective,
        evaluate_now=evaluate_now,
        hooks=hooks,
        stopwatch=stopwatch,
    )
    with checkpoints:
        outcome = trainer.run(folder, progress.step)
    best = checkpoints.best
    if outcome is Outcome.COMPLETED and spec.config.enable_early_stopping and best is not None:
        model = _best_model(run_dir, best, progress.step, model, log)
    return Ending(outcome, progress.step, best.name if best else None, model)


def read_spec(run_dir: RunDir) -> RunSpec:
    """The run's frozen spec. Raises `SpecError`, or `TrainingFailed` (`SPEC_INVALID`) when it is no JSON file."""
    try:
        value = read_json(run_dir.spec)
    except ValueError as error:
        raise TrainingFailed(Code.SPEC_INVALID, f"spec.json is not JSON: {error}", field="spec") from error
    if value is None:
        raise TrainingFailed(Code.SPEC_INVALID, "there is no spec.json", field="spec")
    return RunSpec.from_json(value)


@dataclass(frozen=True, slots=True)
class _ResumePoint:
    folder: Path
    checkpoint: Checkpoint


def _find_resume_point(run_dir: RunDir, spec: RunSpec, log: Log) -> _ResumePoint | None:
    run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
    for name in remove_leftovers(run_dir):
        log.info("leftoverRemoved", name=name)
    newest, damages = newest_sound(run_dir.checkpoints)
    for damage in damages:
        log.warning("checkpointDamaged", damage=str(damage), problem=damage.problem, file=damage.file)
    if newest is not None:
        point = _ResumePoint(run_dir.checkpoints / newest.name, newest)
    elif spec.resume_from is not None:
        folder = Path(spec.resume_from)
        try:
            point = _ResumePoint(folder, read_checkpoint(folder))
        except FolderDamaged as error:
            raise TrainingFailed(Code.MODEL_DAMAGED, str(error), file=error.file) from error
    else:
        return None
    log.info("resuming", name=point.checkpoint.name, step=point.checkpoint.step)
    return point


def _objective(
    spec: RunSpec,
    run_dir: RunDir,
    data: TrainingData,
    hardware: Hardware,
    log: Log,
    get_on: Callable[[], None],
) -> tuple[Objective, NDArray[np.float32] | None]:
    if spec.teacher_model is None:
        return cross_entropy_sum, None
    judged = teacher_logits(
        spec.teacher_model,
        data.train,
        data.labels,
        spec.config.max_length,
        hardware.device,
        run_dir.root / "teacher",
        log,
        get_on,
    )
    return distillation_objective(spec.config.distillation_alpha, spec.config.distillation_temperature), judged


def _encode(
    spec: RunSpec,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    data: TrainingData,
    log: Log,
    get_on: Callable[[], None],
) -> tuple[EncodedRows, EncodedRows]:
    max_length = spec.config.max_length
    positions = max_positions(model)
    if positions is not None and positions < max_length:
        log.warning("maxLengthCut", asked=max_length, maxLength=positions)
        max_length = positions
    # So that whoever loads a checkpoint cuts texts where training did.
    tokenizer.model_max_length = max_length

    def encode(rows: Rows, key: str) -> EncodedRows:
        encoded, facts = encode_rows(
            tokenizer,
            rows,
            data.labels,
            max_length=max_length,
            token_types=takes_token_types(model),
            num_embeddings=num_embeddings(model),
            between=get_on,
        )
        if len(rows):
            tell = log.warning if facts.unknown_share > UNKNOWN_SHARE_TO_WARN else log.info
            tell(
                key,
                numRows=len(rows),
                unknownShare=facts.unknown_share,
                truncatedShare=facts.truncated_share,
                meanLength=facts.mean_length,
                maxLength=max_length,
            )
        return encoded

    return encode(data.train, "trainTokenised"), encode(data.validation, "validationTokenised")


def _tell_start(
    sink: Sink, number: int, step: int, plan: Plan, data: TrainingData, hardware: Hardware, start: Start
) -> None:
    sink.append(
        "started",
        durable=True,
        attempt=number,
        pid=os.getpid(),
        host=platform.node(),
        startStep=step,
        totalSteps=plan.total_steps,
        numTrainRows=len(data.train),
        numValidationRows=len(data.validation),
        labels=data.labels,
        device=str(hardware.device),
        numThreads=hardware.num_threads,
        numParameters=start.num_parameters,
        numTrainableParameters=num_trainable_parameters(start.model),
        versions=versions(),
    )


def _early_stopping(spec: RunSpec, log: Log) -> list[Hook]:
    config = spec.config
    if not config.enable_early_stopping:
        return []
    return [EarlyStopping(log, config.early_stopping_patience, config.early_stopping_threshold)]


def _best_model(run_dir: RunDir, best: Checkpoint, step: int, model: PreTrainedModel, log: Log) -> PreTrainedModel:
    if best.step == step:
        return model
    try:
        restored, _ = load_trained(run_dir.checkpoints / best.name)
    except TrainingFailed as error:
        log.warning("bestNotRestored", name=best.name, detail=error.detail)
        return model
    log.info("bestRestored", name=best.name, **best.metrics)
    return restored
