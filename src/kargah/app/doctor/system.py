"""The machine itself: system, processors, memory and what limits this process. Nothing here is measured by working."""

import os
import platform
import resource
import sqlite3
import sys
from pathlib import Path

import psutil

from kargah import __version__
from kargah.app.doctor.findings import Examination, Facts, unmeasured
from kargah.text.languages import Language
from kargah.text.sizes import human_size

MIN_MEMORY_BYTES = 4_000_000_000
MIN_OPEN_FILES = 1024
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 2**60
"""A cgroup of version 1 says "no limit" with a number about this large."""


def examine_system(language: Language) -> Examination:
    """System, interpreter and processors."""
    found = Examination(language)
    found.facts = {
        "kargah": __version__,
        "python": f"{platform.python_version()} {platform.python_implementation()}",
        "isVirtualEnvironment": sys.prefix != sys.base_prefix,
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "surroundings": _surroundings(),
        "physicalCores": psutil.cpu_count(logical=False),
        "logicalCores": os.cpu_count(),
        "usableCores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpuQuota": _cpu_quota(),
    }
    reasons = {
        "libc": "not glibc",
        "physicalCores": "the system does not tell",
        "usableCores": "this system has no affinity",
        "cpuQuota": "no cgroup limits it",
    }
    found.facts["unmeasured"] = {name: why for name, why in reasons.items() if found.facts[name] is None}
    return found


def examine_memory(language: Language) -> Examination:
    """Memory, swap, the cgroup's limit, and how many files may be open."""
    found = Examination(language)
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    facts: Facts = {
        "totalBytes": memory.total,
        "availableBytes": memory.available,
        "swapTotalBytes": swap.total,
        "swapUsedBytes": swap.used,
    }
    version, limit = cgroup_memory(_CGROUPS, _own_cgroups())
    facts["cgroupVersion"] = version
    facts["cgroupLimitBytes"] = limit
    if limit is None:
        unmeasured(facts, "cgroupLimitBytes", "no cgroup limits it" if version else "no cgroups here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts["openFilesSoft"] = _limit_text(soft)
    facts["openFilesHard"] = _limit_text(hard)
    found.facts = facts
    usable = min(memory.total, limit or memory.total)
    sizes = {"available": human_size(min(memory.available, usable)), "total": human_size(usable)}
    key = "memory.ok" if usable >= MIN_MEMORY_BYTES else "memory.little"
    found.find("memory", "ok" if key == "memory.ok" else "warning", key, **sizes)
    if limit is not None and limit < memory.total:
        found.find("memory", "ok", "memory.limited", limit=human_size(limit))
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        found.find("memory", "warning", "memory.fewFiles", limit=soft)
    return found


def cgroup_memory(root: Path, own: dict[str, str]) -> tuple[int | None, int | None]:
    """Version and memory limit in bytes of this process's cgroup; the smallest on the way up counts.

    `own` maps a controller to the group's path, with the empty name for version 2.
    """
    version: int | None = None
    limits = []
    for controller, name, found_version in (("", "memory.max", 2), ("memory", "memory.limit_in_bytes", 1)):
        base = root / controller if found_version == 1 else root
        if controller not in own or not base.is_dir():
            continue
        for folder in _upwards(base, own[controller]):
            text = _read(folder / name)
            if text is not None:
                version = found_version
                if text.isdigit() and int(text) < _UNLIMITED_BYTES:
                    limits.append(int(text))
    return version, min(limits, default=None)


def _cpu_quota() -> float | None:
    """Processors' worth of time that the cgroup allows, or None for all of them."""
    own = _own_cgroups()
    quotas = []
    for folder in _upwards(_CGROUPS, own.get("", "/")):
        allowed, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        if allowed.isdigit() and period.isdigit():
            quotas.append(int(allowed) / int(period))
    for folder in _upwards(_CGROUPS / "cpu", own.get("cpu", "/")):
        allowed, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
        if allowed.isdigit() and period.isdigit():
            quotas.append(int(allowed) / int(period))
    return min(quotas, default=None)


def _own_cgroups() -> dict[str, str]:
    own: dict[str, str] = {}
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    return own


def _upwards(base: Path, path: str) -> list[Path]:
    """The group's folder and those above it; in a container the path may lie outside of what is mounted."""
    folder = base / path.lstrip("/")
    places = [folder, *folder.parents]
    return places[: places.index(base) + 1] if base in places else [base]


def _surroundings() -> str:
    if "microsoft" in platform.release().lower():
        return "WSL"
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return "container"
    return "no container seen"


def _limit_text(limit: int) -> int | str:
    return "unlimited" if limit == resource.RLIM_INFINITY else limit


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
