"""What this machine gives an attempt: device, threads, and whether it computes in half precision natively."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version

import psutil  # type: ignore[import-untyped, unused-ignore]
import torch

from kargah.compute.failures import Code, TrainingFailed
from kargah.spec.precision import cpu_has_native_bf16

_VERSIONS_OF = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft")


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where an attempt computes. `device` is a torch device such as `cpu` or `cuda:0`."""

    device: torch.device
    num_threads: int


def prepare_hardware(mixed_precision: str) -> Hardware:
    """Set torch's threads and choose the device. Raises `TrainingFailed` (`NOT_SUPPORTED`) for a precision it lacks.

    Threads are `OMP_NUM_THREADS`, or else the physical cores this process may use. The number matters for exact
    resumption: sums are split by it.
    """
    num_threads = _num_threads()
    torch.set_num_threads(num_threads)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    _check_precision(mixed_precision, device)
    return Hardware(device, num_threads)


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS_OF}}


def _num_threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def _check_precision(mixed_precision: str, device: torch.device) -> None:
    if mixed_precision == "no":
        return
    reason = None
    if mixed_precision == "bf16":
        on_gpu = device.type == "cuda"
        native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_native_bf16()
        reason = None if native else f"this {device.type} has no native bfloat16: it would be slower than float32"
    elif mixed_precision == "fp16":
        reason = None if device.type == "cuda" else "float16 training needs a GPU"
    else:
        reason = f"unknown precision {mixed_precision}"
    if reason is not None:
        raise TrainingFailed(Code.NOT_SUPPORTED, reason, field="mixedPrecision")
