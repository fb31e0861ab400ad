"""What has to be there: the requirements that the package itself states, the pins it was released with, the machine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kargah.app.setup.environment import Surroundings

EXTRA = "compute"
PROVED = ("torch", "transformers")


@dataclass(frozen=True, slots=True)
class Target:
    """Another machine than this one. `platforms` are wheel platform tags (`manylinux_2_28_x86_64`), at least one of
    the two is given; `python_version` is `3.12`."""

    platforms: tuple[str, ...] = ()
    python_version: str | None = None

    def tags(self) -> list[str]:
        """`platforms` and the older ones whose wheels run there too: pip takes `manylinux_2_28_x86_64` for itself alone
        (PEP 600 and PEP 656 say what it includes)."""
        found: list[str] = []
        for platform in self.platforms:
            match = _LINUX.fullmatch(platform)
            if match is None:
                found.append(platform)
                continue
            kind, major, newest, machine = match[1], match[2], int(match[3]), match[4]
            for minor in range(newest, -1, -1):
                found.append(f"{kind}_{major}_{minor}_{machine}")
                if kind == "manylinux" and minor in _OLD_NAMES:
                    found.append(f"{_OLD_NAMES[minor]}_{machine}")
        return found

    def markers(self) -> dict[str, str]:
        """What environment markers (PEP 508) say there, as far as it differs from here."""
        found: dict[str, str] = {}
        if self.python_version:
            major, minor = [*self.python_version.split("."), "0"][:2]
            found["python_version"] = f"{major}.{minor}"
            found["python_full_version"] = (
                self.python_version if self.python_version.count(".") > 1 else f"{major}.{minor}.0"
            )
            found["implementation_version"] = found["python_full_version"]
        for platform in self.platforms[:1]:
            system = next((words for start, words in _SYSTEMS.items() if platform.startswith(start)), None)
            if system is not None:
                found["sys_platform"], found["platform_system"], found["os_name"] = system
            machine = next((machine for machine in _MACHINES if platform.endswith(machine)), None)
            if machine is not None:
                found["platform_machine"] = machine
        return found


@dataclass(frozen=True, slots=True)
class Goal:
    """`requirements` (PEP 508) and `pins` (`name==version`) for pip; `modules` are imported as the proof."""

    requirements: tuple[str, ...]
    pins: tuple[str, ...]
    modules: tuple[str, ...]

    def reached(self, surroundings: Surroundings) -> bool:
        """Whether every requirement is installed whole, in a version that it allows."""
        for text in self.requirements:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            version = surroundings.versions.get(canonicalize_name(requirement.name))
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                return False
        return True

    def pins_for(self, surroundings: Surroundings) -> tuple[str, ...]:
        """The pins of what is not installed: an installed version that the requirements allow stays as it is."""
        return tuple(pin for pin in self.pins if canonicalize_name(Requirement(pin).name) not in surroundings.versions)


def compute_goal(*, torch: str | None = None, whole: bool = False, target: Target | None = None) -> Goal:
    """The goal of `kargah setup compute`. `torch` asks for this very version; with `whole`, what Kargah itself stands
    on belongs to it too, so that it can be installed from the same folder."""
    environment = {**(target.markers() if target else {}), "extra": EXTRA}
    found: list[str] = []
    for text in requires("kargah") or []:
        requirement = Requirement(text)
        if not _belongs(requirement, environment, whole=whole):
            continue
        requirement.marker = None
        if torch is not None and canonicalize_name(requirement.name) == "torch":
            requirement = Requirement(f"torch=={torch}")
        found.append(str(requirement))
    pins = read_pins()
    if torch is not None:
        pins = tuple(pin for pin in pins if canonicalize_name(Requirement(pin).name) != "torch")
    return Goal(tuple(found), pins, PROVED)


def read_pins() -> tuple[str, ...]:
    """`pins.txt`: the versions that this release was tested with, for everything but the tools of developers."""
    text = resources.files("kargah.app.setup").joinpath("pins.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def _belongs(requirement: Requirement, environment: Mapping[str, str], *, whole: bool) -> bool:
    marker = requirement.marker
    if marker is None:
        return whole
    with_extra = marker.evaluate(dict(environment))
    without = marker.evaluate({**environment, "extra": ""})
    return with_extra and (whole or not without)


_LINUX = re.compile(r"(manylinux|musllinux)_(\d+)_(\d+)_(.+)")
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_SYSTEMS = {
    "manylinux": ("linux", "Linux", "posix"),
    "musllinux": ("linux", "Linux", "posix"),
    "linux": ("linux", "Linux", "posix"),
    "macosx": ("darwin", "Darwin", "posix"),
}
_MACHINES = ("x86_64", "aarch64", "arm64", "ppc64le", "s390x")
