"""How much memory a run needs, and how much there is for all of them: two that do not fit together do not run together.

The estimate is made before anything runs, from the files and the shapes in `config.json`. After an attempt its measured
peak takes the estimate's place (`RunRow.reserved_bytes`).
"""

import json
from pathlib import Path

import psutil

from kargah.spec.run_spec import LoraConfig, ModelRef, RunSpec

RUNTIME_BYTES = 450_000_000
"""The program and its libraries before a model is loaded (measured: 430 MB resident, torch for CPUs)."""
SHARE = 0.85
"""Of the machine's memory, the share that runs may have when nothing is set."""
HEADROOM = 1.1
"""A measured peak and the next attempt's differ a little."""

_MOMENTS = {"adamw": 2, "adam": 2, "rmsprop": 1, "adagrad": 1, "adafactor": 0, "sgd": 0}
"""Copies of the trained weights that an optimiser keeps; Adafactor's rows and columns are next to nothing."""
_FLOAT_BYTES = 4
_HALF = ("float16", "bfloat16")


def reservation(spec: RunSpec) -> int:
    """Bytes that a run takes at its highest, about: an estimate that is meant to be rather too high than too low.

    Weights, gradients and the optimiser's moments, a copy of all that a checkpoint holds while it is written, the
    teacher, and what one batch leaves in the layers for the backward pass: per layer `b·s·h·(34 + 5·a·s/h)` elements of
    two bytes each (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models"), of four
    here. A model whose shapes cannot be read counts by its files alone.
    """
    weights = _weight_bytes(spec.base_model)
    trained = _trained_bytes(weights, spec.config.lora)
    moments = _MOMENTS[spec.config.optimizer] * trained
    kept = weights + moments
    total = RUNTIME_BYTES + kept + trained + kept + _activation_bytes(spec.base_model, spec)
    if spec.teacher_model is not None:
        total += _weight_bytes(spec.teacher_model)
    return total


def budget(asked_bytes: int) -> int:
    """Bytes that all runs together may take: `asked_bytes`, or of 0 a share of the machine's (the container's)."""
    if asked_bytes:
        return asked_bytes
    total = psutil.virtual_memory().total
    limit = _container_limit()
    return int(SHARE * (min(total, limit) if limit else total))


def _weight_bytes(ref: ModelRef) -> int:
    """The weights as they are trained, in four bytes each."""
    stored = sum(path.stat().st_size for path in Path(ref.path).glob("*.safetensors"))
    config = _config(ref)
    return stored * 2 if (config.get("dtype") or config.get("torch_dtype")) in _HALF else stored


def _trained_bytes(weights: int, lora: LoraConfig | None) -> int:
    """Of a model with adapters only these and the head learn: a share that grows with the rank."""
    return weights if lora is None else min(weights, weights * lora.rank // 400 + 1)


def _activation_bytes(ref: ModelRef, spec: RunSpec) -> int:
    config = _config(ref)
    hidden = _number(config, "hidden_size", "dim", "d_model", "n_embd")
    layers = _number(config, "num_hidden_layers", "n_layers", "num_layers", "n_layer")
    heads = _number(config, "num_attention_heads", "n_heads", "num_heads", "n_head")
    if not hidden or not layers:
        return 0
    length, rows = spec.config.max_length, spec.config.batch_size
    elements = rows * length * hidden * (34 + 5 * heads * length // hidden) // 2
    return layers * elements * _FLOAT_BYTES


def _config(ref: ModelRef) -> dict[str, object]:
    try:
        value = json.loads((Path(ref.path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(config: dict[str, object], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int):
            return value
    return 0


def _container_limit() -> int | None:
    """The memory limit of the control group this process is in (cgroup v2, then v1), or None."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None
