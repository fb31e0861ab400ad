"""The Python environment that receives the training part, looked at and tried by children: what an import breaks there
does not break here, and what was installed a moment ago is seen."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from kargah.app.setup.errors import ComputeBroken

_LOOK = """
import json, os, sys, sysconfig
from importlib.metadata import distributions
found = {}
for one in distributions():
    name = one.metadata["Name"]
    if name:
        half = one.read_text("WHEEL") is not None and one.read_text("RECORD") is None
        found.setdefault(name, [one.version, half])
managed = sys.prefix == sys.base_prefix and os.path.isfile(
    os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))
print(json.dumps({"installed": found, "managed": managed, "site": sysconfig.get_path("purelib")}))
"""

_PROVE = """
import importlib, json, sys
versions = {}
for name in sys.argv[1:]:
    versions[name] = str(getattr(importlib.import_module(name), "__version__", ""))
devices = []
if "torch" in versions:
    import torch
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    elif torch.backends.mps.is_available():
        devices = ["Apple GPU (MPS)"]
print(json.dumps({"versions": versions, "devices": devices or ["CPU"]}))
"""
_SAID_CHARS = 1500


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands in an environment."""

    versions: Mapping[str, Version]
    """Canonical name to version of every distribution that is whole."""
    halves: frozenset[str]
    """Canonical names of those whose installation was broken off: pip writes `RECORD` last."""
    externally_managed: bool
    site: Path


@dataclass(frozen=True, slots=True)
class Proof:
    """What a child found when it imported the training part."""

    versions: Mapping[str, str]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of one interpreter."""

    python: str

    def look(self) -> Surroundings:
        """What is installed there now. Raises `ComputeBroken` when the interpreter itself does not run."""
        said: dict[str, Any] = self._ask(_LOOK)
        versions: dict[str, Version] = {}
        halves = set()
        for name, (version, half) in said["installed"].items():
            canonical = canonicalize_name(name)
            if half:
                halves.add(str(canonical))
                continue
            try:
                versions[canonical] = Version(version)
            except InvalidVersion:
                continue
        return Surroundings(versions, frozenset(halves), bool(said["managed"]), Path(said["site"]))

    def prove(self, modules: Sequence[str]) -> Proof:
        """Import `modules` in a child. Raises `ComputeBroken` with what it said."""
        said = self._ask(_PROVE, *modules)
        return Proof(said["versions"], tuple(said["devices"]))

    def _ask(self, program: str, *arguments: str) -> dict[str, Any]:
        # -P: what lies in the working directory is not what is installed.
        command = [self.python, "-P", "-c", program, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, errors="replace")
        except OSError as error:
            raise ComputeBroken(problem=str(error)) from error
        if done.returncode != 0:
            raise ComputeBroken(problem=done.stderr.strip()[-_SAID_CHARS:] or f"exit code {done.returncode}")
        # A library may print while it is imported; the answer is the last line.
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer
