"""How fast a device multiplies matrices and moves memory, within a budget of time, and whether the products are right.

Sizes grow until one product takes long enough to be timed well. Best and median of several; a GPU is waited for
before the clock is read.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kargah.compute.hardware import prepare_hardware
from kargah.compute.selftest.devices import PRECISIONS, free_bytes

CHECKED_SIZE = 256
# Relative error of a product against float64, in the Frobenius norm; an order above what rounding gives.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
TF32_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a measure may take."""

    seconds: float
    max_size: int
    copy_bytes: int


FULL = Budget(seconds=1.0, max_size=16384, copy_bytes=256 * 1024 * 1024)
QUICK = Budget(seconds=0.05, max_size=512, copy_bytes=16 * 1024 * 1024)


def open_device(name: str) -> torch.device:
    """The device of this name, made the present one; torch's threads set as training sets them."""
    device = torch.device(name)
    prepare_hardware("no")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "xpu":
        torch.xpu.set_device(device)
    return device


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


def gemm(device: torch.device, precision: str, reason: str | None, budget: Budget) -> dict[str, Any]:
    """Speed and error of square products in `precision`; nothing but the reason when there is one not to measure.

    A product of n × n counts 2n³ operations. Raises `RuntimeError` for a lack of memory, or what the device refuses.
    """
    result: dict[str, Any] = {"type": "gemm", "precision": precision}
    if reason is not None:
        absent = ("bestGflops", "medianGflops")
        return {**result, **dict.fromkeys(absent), "unmeasured": dict.fromkeys(absent, reason)}
    dtype = PRECISIONS[precision]
    error = _relative_error(device, dtype)
    size = CHECKED_SIZE
    while True:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        product = torch.empty(size, size, device=device, dtype=dtype)
        seconds = _timed(device, partial(torch.mm, left, right, out=product), budget.seconds / 20)
        if min(seconds) > budget.seconds / 20 or not _may_double(device, size, dtype, budget):
            break
        size *= 2
    seconds = _timed(device, partial(torch.mm, left, right, out=product), budget.seconds)
    billions = 2 * size**3 / 1e9
    return {
        **result,
        "size": size,
        "numProducts": len(seconds),
        "bestGflops": billions / min(seconds),
        "medianGflops": billions / statistics.median(seconds),
        "relativeError": error,
        "isRight": error <= _tolerance(device, precision),
        "unmeasured": {},
    }


def bandwidth(device: torch.device, budget: Budget) -> dict[str, Any]:
    """Bytes a second that copying within a device reads and writes together."""
    num_bytes = min(budget.copy_bytes, free_bytes(device) // 8)
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    seconds = _timed(device, lambda: target.copy_(source), budget.seconds / 2)
    moved = 2 * source.numel() * 4
    return {
        "type": "bandwidth",
        "copiedBytes": source.numel() * 4,
        "numCopies": len(seconds),
        "bestBytesPerSecond": moved / min(seconds),
        "medianBytesPerSecond": moved / statistics.median(seconds),
        "unmeasured": {},
    }


def _relative_error(device: torch.device, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.randn(CHECKED_SIZE, CHECKED_SIZE, generator=generator).to(dtype) for _ in range(2))
    product = (left.to(device) @ right.to(device)).cpu().double()
    expected = left.double() @ right.double()
    # NaN would compare as neither right nor wrong.
    return float(torch.nan_to_num((product - expected).norm() / expected.norm(), nan=1e9, posinf=1e9))


def _tolerance(device: torch.device, precision: str) -> float:
    is_rough = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return TF32_TOLERANCE if precision == "float32" and is_rough else TOLERANCES[precision]


def _may_double(device: torch.device, size: int, dtype: torch.dtype, budget: Budget) -> bool:
    needed = 3 * (2 * size) ** 2 * dtype.itemsize
    return 2 * size <= budget.max_size and needed < free_bytes(device) // 4


def _timed(device: torch.device, work: Callable[[], object], budget_seconds: float) -> list[float]:
    """Seconds of each repetition, at least three, until the budget is used. One before them is not counted."""
    work()
    synchronize(device)
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < budget_seconds:
        begun = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return seconds
