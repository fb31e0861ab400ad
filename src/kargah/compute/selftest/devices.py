"""What torch and the system say of the devices: names, memory, drivers, and which precisions are native."""

import platform
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
import torch

from kargah.compute.hardware import prepare_hardware, versions
from kargah.spec.precision import cpu_has_native_bf16

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NVIDIA_SMI_SECONDS = 20.0


def device_names() -> list[str]:
    """Every device torch can compute on, as torch names it; the processor first."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, *(f"xpu:{number}" for number in range(torch.xpu.device_count()))]


def machine_facts() -> dict[str, Any]:
    """Versions, drivers and devices, and a GPU that the system shows but torch cannot use.

    `trainsOn` is the device the training program chooses. `gpuProblem` is null when there is none.
    """
    unmeasured: dict[str, str] = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    driver = _nvidia_driver()
    if driver is None:
        unmeasured["nvidiaDriver"] = "no NVIDIA driver was found"
    return {
        "versions": versions(),
        "cuda": torch.version.cuda,
        "rocm": getattr(torch.version, "hip", None),
        "cudnn": torch.backends.cudnn.version() if usable else None,  # type: ignore[no-untyped-call]
        "nvidiaDriver": driver,
        "gpuProblem": None if usable else _gpu_problem(driver, [str(warning.message) for warning in told]),
        "devices": device_names(),
        "trainsOn": str(prepare_hardware("no").device),
        "unmeasured": unmeasured | _absent(usable),
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """What one device is. Memory in bytes."""
    if device.type == "cuda":
        return _cuda_facts(device)
    if device.type == "mps":
        return _mps_facts()
    if device.type == "xpu":
        return _xpu_facts(device)
    return _cpu_facts()


def precisions(device: torch.device) -> dict[str, str | None]:
    """Each precision with the reason why it is not worth measuring here, or None when the device has it natively."""
    if device.type == "cpu":
        emulated = None if cpu_has_native_bf16() else "this processor has no native bfloat16"
        return {"float32": None, "bfloat16": emulated, "float16": "training in float16 needs a GPU"}
    if device.type == "cuda":
        bfloat = torch.cuda.is_bf16_supported(including_emulation=False)
        half = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (5, 3)
        return {
            "float32": None,
            "bfloat16": None if bfloat else "this GPU has no native bfloat16",
            "float16": None if half else "this GPU has no native float16",
        }
    # Neither MPS nor XPU tells beforehand in every version: what it cannot do fails, and says so.
    return dict.fromkeys(PRECISIONS)


def free_bytes(device: torch.device) -> int:
    """Memory that may be used on a device now; the machine's own where a device shares it or does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    if device.type == "mps":
        return min(available, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    if device.type == "xpu":
        return int(torch.xpu.get_device_properties(device).total_memory) - torch.xpu.memory_allocated(device)
    return available


def _cpu_facts() -> dict[str, Any]:
    return {
        "kind": "cpu",
        "model": _cpu_model(),
        "totalMemoryBytes": int(psutil.virtual_memory().total),
        "freeMemoryBytes": free_bytes(torch.device("cpu")),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "numThreads": torch.get_num_threads(),
        "bfloat16Native": cpu_has_native_bf16(),
        "float16Native": None,
        "unmeasured": {"float16Native": "torch does not tell for a processor"},
    }


def _cuda_facts(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    native = precisions(device)
    is_rocm = torch.version.hip is not None
    return {
        "kind": "rocm" if is_rocm else "cuda",
        "model": properties.name,
        "totalMemoryBytes": int(properties.total_memory),
        "freeMemoryBytes": free_bytes(device),
        "capability": properties.gcnArchName if is_rocm else f"{properties.major}.{properties.minor}",
        "numMultiprocessors": properties.multi_processor_count,
        "builtFor": torch.cuda.get_arch_list(),
        "bfloat16Native": native["bfloat16"] is None,
        "float16Native": native["float16"] is None,
        "float32Precision": torch.get_float32_matmul_precision(),
        "unmeasured": {},
    }


def _mps_facts() -> dict[str, Any]:
    return {
        "kind": "mps",
        "model": _cpu_model(),
        "totalMemoryBytes": int(torch.mps.recommended_max_memory()),
        "freeMemoryBytes": free_bytes(torch.device("mps")),
        "capability": platform.mac_ver()[0],
        "bfloat16Native": None,
        "float16Native": None,
        "unmeasured": dict.fromkeys(("bfloat16Native", "float16Native"), "MPS does not tell"),
    }


def _xpu_facts(device: torch.device) -> dict[str, Any]:
    properties = torch.xpu.get_device_properties(device)
    return {
        "kind": "xpu",
        "model": properties.name,
        "totalMemoryBytes": int(properties.total_memory),
        "freeMemoryBytes": free_bytes(device),
        "capability": str(getattr(properties, "driver_version", "")) or None,
        "bfloat16Native": None,
        "float16Native": bool(getattr(properties, "has_fp16", False)),
        "unmeasured": {"bfloat16Native": "XPU does not tell"},
    }


def _gpu_problem(driver: str | None, warned: list[str]) -> str | None:
    """Why torch sees no GPU where the system has one."""
    if driver is not None or any(Path("/dev").glob("nvidia[0-9]*")):
        if torch.version.cuda is None:
            return "an NVIDIA GPU is here, and this torch is built without CUDA"
        return next(iter(warned), "an NVIDIA GPU is here, and CUDA does not start").splitlines()[0]
    if Path("/dev/kfd").exists() and torch.version.hip is None:
        return "an AMD GPU is here, and this torch is built without ROCm"
    if Path("/dev/kfd").exists():
        return next(iter(warned), "an AMD GPU is here, and ROCm does not start").splitlines()[0]
    return None


def _absent(usable: bool) -> dict[str, str]:
    reasons = {} if usable else {"cudnn": "no GPU is usable"}
    if torch.version.cuda is None:
        reasons["cuda"] = "this torch is built without CUDA"
    if getattr(torch.version, "hip", None) is None:
        reasons["rocm"] = "this torch is built without ROCm"
    return reasons


def _nvidia_driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is not None:
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)
            return next(iter(said.stdout.split()), None)
        except (OSError, subprocess.SubprocessError):
            pass  # a driver that is half there; the kernel may still name it
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
        return found[1].strip() if found else platform.processor() or platform.machine()
    except OSError:
        pass
    try:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or None
