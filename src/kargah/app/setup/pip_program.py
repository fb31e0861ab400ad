"""pip as a child process, and what of its configuration a transfer of our own has to know.

The pip has to be 25.3 or newer to resolve without fetching: older ones, and that is what most environments are born
with, download every wheel whole even for `--dry-run`, and without resuming. So where the environment's own is older or
missing, a newer one is fetched (2 MB) into the folder of wheels and run from its wheel, as pip's documentation allows;
the environment's own is not touched. Where the index has none, the older one must do.
"""

import ast
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from kargah.app.setup.environment import Environment
from kargah.app.setup.errors import PipMissing, Unresolved

RESOLVING_PIP = Version("25.3")
"""The first that takes PEP 658 metadata, or a wheel's own by ranged requests, for enough in a dry run."""
_FETCH_ATTEMPTS = 5
_QUIET = ("--disable-pip-version-check", "--no-input")
_SAID_CHARS = 1500
_LOOKING = ("Collecting ", "Obtaining ", "Processing ", "Downloading ", "Using ", "Requirement already", "Looking in ")

# pip evaluates environment markers for the machine it runs on, even with --platform and --python-version.
_ELSEWHERE = """
import json, runpy, sys
program, elsewhere = sys.argv[1], json.loads(sys.argv[2])
if program:
    sys.path.insert(0, program)
from pip._vendor.packaging import markers
here = markers.default_environment
markers.default_environment = lambda: {**here(), **elsewhere}
sys.argv[:3] = ["pip"]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""

Said = Callable[[str], None]
"""Takes each line that pip prints, for whoever watches."""


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """Where pip looks, beside what its own configuration says."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        first = ["--index-url", self.index_url] if self.index_url else []
        return [*first, *(part for url in self.extra_index_urls for part in ("--extra-index-url", url))]

    @property
    def urls(self) -> tuple[str, ...]:
        return (*((self.index_url,) if self.index_url else ()), *self.extra_index_urls)


@dataclass(frozen=True, slots=True)
class Pip:
    """One pip that works on one environment. `wheel` is the wheel it runs from, None for the environment's own."""

    environment: Environment
    version: Version
    wheel: Path | None = None
    configuration: Mapping[str, str] = field(default_factory=dict)
    """What `pip config list` says, by option: environment before command before global."""

    @property
    def resolves_lazily(self) -> bool:
        return self.version >= RESOLVING_PIP

    def run(
        self,
        *arguments: str,
        said: Said | None = None,
        elsewhere: Mapping[str, str] | None = None,
        alone: bool = False,
    ) -> None:
        """Run a command of pip. `elsewhere` are the environment markers of another machine; `alone` leaves pip's
        configuration out, which may name further places to look at.

        Raises `Unresolved` with its last words when it fails.
        """
        command, *rest = arguments
        if elsewhere:
            program = str(self.wheel) if self.wheel else ""
            head = [self.environment.python, "-P", "-c", _ELSEWHERE, program, json.dumps(dict(elsewhere))]
        else:
            head = _program(self.environment.python, self.wheel)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            with subprocess.Popen(
                [*head, command, *_QUIET, *(["--isolated"] if alone else []), "--progress-bar", "off", *rest],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                env=_environment(alone=alone),
            ) as child:
                assert child.stdout is not None
                # pip explains a conflict on standard output, behind the names of what it looked at.
                explained: list[str] = []
                try:
                    for line in child.stdout:
                        explained = [] if line.lstrip().startswith(_LOOKING) else [*explained, line]
                        if said is not None:
                            said(line.strip())
                except BaseException:
                    # Whoever ends us ends pip too: nothing may go on installing behind a command that is over.
                    child.terminate()
                    raise
            if child.returncode != 0:
                errors.seek(0)
                words = [_last_words(errors.read()), "".join(explained).strip()]
                problem = "\n".join(part for part in words if part)[-_SAID_CHARS:]
                raise Unresolved(problem=problem or f"pip ended with code {child.returncode}")


def find_pip(environment: Environment, folders: Sequence[Path], index: IndexOptions | None, said: Said) -> Pip:
    """The pip to work with: the environment's own when it is new enough, else one from a wheel in `folders`, fetched
    into the first of them from `index` when there is none (without an index any pip is new enough).

    Raises `PipMissing`.
    """
    own = environment.look().versions.get("pip")
    if own is not None and (index is None or own >= RESOLVING_PIP):
        return _configured(environment, own, None)
    found = _newest_wheel(folders)
    if found is not None:
        return _configured(environment, *found)
    if own is None:
        own = _ensure_pip(environment)
    if index is None or own >= RESOLVING_PIP:
        return _configured(environment, own, None)
    _fetch_pip(environment, own, folders[0], index, said)
    found = _newest_wheel(folders)
    return _configured(environment, *(found or (own, None)))


def _newest_wheel(folders: Sequence[Path]) -> tuple[Version, Path] | None:
    found = []
    for folder in folders:
        for path in folder.glob("pip-*.whl"):
            try:
                _, version, _, _ = parse_wheel_filename(path.name)
            except InvalidWheelFilename:
                continue
            if version >= RESOLVING_PIP:
                found.append((version, path))
    return max(found, default=None)


def _ensure_pip(environment: Environment) -> Version:
    """What Python itself brings along: environments made by other tools come without pip."""
    command = [environment.python, "-m", "ensurepip"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=_environment())
    own = environment.look().versions.get("pip") if done.returncode == 0 else None
    if own is None:
        raise PipMissing(python=environment.python)
    return own


def _fetch_pip(environment: Environment, own: Version, folder: Path, index: IndexOptions, said: Said) -> None:
    what = ["--no-deps", "--only-binary=:all:", *index.arguments(), f"pip>={RESOLVING_PIP}"]
    # pip copies into the folder; a wheel that is seen there has to be whole.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as place:
        for _ in range(_FETCH_ATTEMPTS):
            try:
                Pip(environment, own).run("download", "--dest", place, *what, said=said)
            except Unresolved as failure:
                said(str(failure.params["problem"]).splitlines()[-1])
                continue
            for path in Path(place).glob("pip-*.whl"):
                path.replace(folder / path.name)
            return


def _configured(environment: Environment, version: Version, wheel: Path | None) -> Pip:
    command = [*_program(environment.python, wheel), "config", "list", "--disable-pip-version-check"]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env=_environment()
    )
    return Pip(environment, version, wheel, _options(done.stdout if done.returncode == 0 else ""))


def _options(listed: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            head, _, option = name.rpartition(".")
            if head != section:
                continue
            try:
                found[option.strip()] = str(ast.literal_eval(value.strip()))
            except (ValueError, SyntaxError):
                found[option.strip()] = value.strip()
    return found


def _program(python: str, wheel: Path | None) -> list[str]:
    return [python, str(wheel / "pip")] if wheel is not None else [python, "-P", "-m", "pip"]


def _environment(*, alone: bool = False) -> dict[str, str]:
    # --isolated leaves out the variables and the user's file, but not the machine's.
    configuration = {"PIP_CONFIG_FILE": os.devnull} if alone else {}
    return {**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1", **configuration}


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return "\n".join(errors or lines)
