"""TrainConfig in the words of HF Trainer: checks, step counts, optimizer, schedule."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Adafactor, TrainingArguments

from kargah.compute.failures import Code, TrainingFailed
from kargah.compute.hardware import Hardware
from kargah.spec.run_spec import (
    BATCHINGS,
    LR_SCHEDULERS,
    OPTIMIZERS,
    TASKS,
    VOCABULARIES,
    LoraConfig,
    RunSpec,
    TrainConfig,
    to_camel,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many optimiser steps a run takes, and how many make an epoch."""

    total_steps: int
    steps_per_epoch: int


def check_spec(spec: RunSpec) -> None:
    """Refuse what cannot be trained. Raises `TrainingFailed`: `NOT_SUPPORTED` or `SPEC_INVALID`, with the field."""
    config = spec.config
    for name, value, known in (
        ("task", spec.task, TASKS),
        ("optimizer", config.optimizer, OPTIMIZERS),
        ("lrScheduler", config.lr_scheduler, LR_SCHEDULERS),
        ("vocabulary", config.vocabulary, VOCABULARIES),
        ("batching", config.batching, BATCHINGS),
    ):
        if value not in known:
            raise TrainingFailed(Code.NOT_SUPPORTED, f"{value} is none of {', '.join(known)}", field=name)
    for name in ("batch_size", "gradient_accumulation_steps", "log_every_steps"):
        _require(getattr(config, name) >= 1, name, "must be at least 1")
    for name in ("max_steps", "eval_every_steps", "checkpoint_every_steps"):
        value = getattr(config, name)
        _require(value is None or value >= 1, name, "must be at least 1")
    for name in ("warmup_steps", "weight_decay", "max_grad_norm", "keep_checkpoints", "early_stopping_threshold"):
        _require(getattr(config, name) >= 0, name, "must not be negative")
    _require(config.max_length >= 4, "max_length", "must be at least 4 tokens")
    _require(config.learning_rate > 0, "learning_rate", "must be positive")
    _require(config.alignment_epochs >= 0, "alignment_epochs", "must not be negative")
    rate = config.embedding_learning_rate
    _require(rate is None or rate > 0, "embedding_learning_rate", "must be positive")
    _require(config.max_steps is not None or config.epochs > 0, "epochs", "must be positive")
    _require(config.dropout is None or 0 <= config.dropout < 1, "dropout", "must be at least 0 and below 1")
    _require(config.early_stopping_patience >= 1, "early_stopping_patience", "must be at least 1")
    share = config.validation_split
    _require(share is None or 0 <= share < 1, "validation_split", "must be at least 0 and below 1")
    _require(0 <= config.distillation_alpha <= 1, "distillation_alpha", "must be between 0 and 1")
    _require(config.distillation_temperature > 0, "distillation_temperature", "must be positive")
    if config.lora is not None:
        _check_lora(config, config.lora)


def plan_steps(config: TrainConfig, num_rows: int) -> Plan:
    """Optimiser steps for `num_rows` training rows. `max_steps` wins over `epochs`; a broken last batch counts."""
    batches = math.ceil(num_rows / config.batch_size)
    steps_per_epoch = math.ceil(batches / config.gradient_accumulation_steps)
    total = config.max_steps if config.max_steps is not None else math.ceil(config.epochs * steps_per_epoch)
    return Plan(total, steps_per_epoch)


def training_arguments(config: TrainConfig, plan: Plan, hardware: Hardware, folder: Path) -> TrainingArguments:
    """Trainer's arguments. It neither logs, evaluates nor saves by itself: our hooks decide when."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.total_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.lr_scheduler,
        lr_scheduler_kwargs=_scheduler_options(config, plan),
        warmup_steps=config.warmup_steps,
        seed=config.seed,
        bf16=config.mixed_precision == "bf16",
        fp16=config.mixed_precision == "fp16",
        use_cpu=hardware.device.type == "cpu",
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=hardware.device.type != "cpu",
    )
    # With several GPUs Trainer would split batches over threads of this process; one run computes on one device.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def optimizer_of(config: TrainConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Class and options of the optimizer, for Trainer to build it over its two groups (with and without decay).

    Everything but the learning rate is torch's default. AdamW is the fused kernel, three times as fast on a large
    vocabulary; SGD and RMSprop are without momentum; Adafactor takes the given learning rate, without its own relative
    steps.
    """
    rate = {"lr": config.learning_rate}
    options: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        "adamw": (torch.optim.AdamW, {**rate, "fused": True}),
        "adam": (torch.optim.Adam, {**rate, "fused": True}),
        "adafactor": (Adafactor, {**rate, "scale_parameter": False, "relative_step": False}),
        "sgd": (torch.optim.SGD, rate),
        "rmsprop": (torch.optim.RMSprop, rate),
        "adagrad": (torch.optim.Adagrad, rate),
    }
    return options[config.optimizer]


def _scheduler_options(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    """Polynomial falls to zero with power 2 (power 1 is `linear`); cosine restarts with every epoch."""
    if config.lr_scheduler == "polynomial":
        return {"lr_end": 0.0, "power": 2.0}
    if config.lr_scheduler == "cosine_with_restarts":
        return {"num_cycles": math.ceil(plan.total_steps / plan.steps_per_epoch)}
    return {}


def _check_lora(config: TrainConfig, lora: LoraConfig) -> None:
    _require(lora.rank >= 1, "lora.rank", "must be at least 1")
    _require(lora.alpha > 0, "lora.alpha", "must be positive")
    _require(0 <= lora.dropout < 1, "lora.dropout", "must be at least 0 and below 1")
    _require(lora.target_modules is None or len(lora.target_modules) > 0, "lora.target_modules", "must name a layer")
    # Both train every embedding, the graft the whole body: what LoRA is asked to leave frozen.
    for name, is_given in (
        ("vocabulary", config.vocabulary != "own"),
        ("embedding_learning_rate", config.embedding_learning_rate is not None),
    ):
        if is_given:
            field = to_camel(name)
            raise TrainingFailed(Code.NOT_SUPPORTED, f"lora leaves embeddings frozen: {field} has no use", field=field)


def _require(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise TrainingFailed(Code.SPEC_INVALID, f"{to_camel(name)} {problem}", field=to_camel(name))
