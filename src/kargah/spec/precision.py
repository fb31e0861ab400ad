"""Whether this machine's processor computes in bfloat16 natively: the training program asks, and the server's plan.

Without such instructions bfloat16 products are emulated: measured nine times slower than float32, so a run that asks
for them is refused.
"""

import platform
import subprocess
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# x86: AVX-512 and AMX; Arm: FEAT_BF16.
_NATIVE_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_SYSCTL = ("/usr/sbin/sysctl", "-n", "hw.optional.arm.FEAT_BF16")
_SYSCTL_TIMEOUT_SECONDS = 5


@cache
def cpu_has_native_bf16() -> bool:
    """Whether the processor has bfloat16 instructions; False where the system does not tell."""
    if platform.system() == "Darwin":
        return _answer_of_sysctl() == "1"
    try:
        return flags_tell_bf16(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return False


def flags_tell_bf16(cpuinfo: str) -> bool:
    """Whether the first processor in the text of Linux's `/proc/cpuinfo` has bfloat16 instructions."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return bool(_NATIVE_BF16_FLAGS & set(flags.lower().split()))
    return False


def _answer_of_sysctl() -> str:
    try:
        done = subprocess.run(_SYSCTL, capture_output=True, text=True, timeout=_SYSCTL_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
