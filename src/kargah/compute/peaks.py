"""The most memory that this process took. torch is asked only when it is there already."""

import resource
import sys


def peak_memory() -> dict[str, int]:
    """`peakMemoryBytes` of the process and, where it used CUDA, `peakGpuMemoryBytes` that torch took of the GPU."""
    peaks = {"peakMemoryBytes": peak_process_bytes()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["peakGpuMemoryBytes"] = int(torch.cuda.max_memory_reserved())
    return peaks


def peak_process_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
