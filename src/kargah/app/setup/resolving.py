"""Which wheels to bring: pip's resolver is asked for its report and fetches none of them.

Where the index serves metadata beside the wheels (PEP 658), pip reads only that. Where it does not, `fast-deps` lets
pip read the metadata out of a wheel by a few ranged requests. Where the server knows no ranges either, pip has to fetch
each wheel whole to resolve (it resumes by itself within one run) and throws it away; then the wheels come twice, and
there is nothing this side can do about it. The same goes for a pip older than 25.3, see `pip_program`.

The answer is kept in `plan.json` among the wheels, so that a start after a kill asks no index again. It is asked again
when the question has changed: requirements, pins, pip's configuration, the interpreter, or what else is installed.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from kargah.app.setup.environment import Surroundings
from kargah.app.setup.errors import Unresolved
from kargah.app.setup.goal import Goal, Target
from kargah.app.setup.pip_program import IndexOptions, Pip, Said
from kargah.spec.layout import read_json, write_json

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel to bring. `name` is canonical, `url` is `http(s)://` or `file://` and holds no credentials; `sha256` is
    None where the index states none, `size_bytes` until it was asked for."""

    name: str
    version: str
    file: str
    url: str
    sha256: str | None = None
    size_bytes: int | None = None

    @property
    def local(self) -> Path | None:
        """The file itself when it lies on this machine."""
        parts = urlsplit(self.url)
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None

    @property
    def host(self) -> str:
        """Where it comes from, for people."""
        parts = urlsplit(self.url)
        return parts.hostname or str(Path(url2pathname(parts.path)).parent)


@dataclass(frozen=True, slots=True)
class Question:
    """What decides which wheels are needed."""

    goal: Goal
    index: IndexOptions
    target: Target | None
    surroundings: Surroundings
    afresh: bool
    """Resolve as if nothing were installed: for another machine, or after an installation that was broken off."""

    @property
    def pins(self) -> tuple[str, ...]:
        return self.goal.pins if self.afresh else self.goal.pins_for(self.surroundings)

    def others(self, names: Iterable[str]) -> dict[str, str]:
        """What is installed beside `names`: those may be half-way in already."""
        left_out = set(names)
        if self.afresh:
            return {}
        return {name: str(version) for name, version in self.surroundings.versions.items() if name not in left_out}


def resolve(pip: Pip, question: Question, said: Said | None = None) -> tuple[Wheel, ...]:
    """Ask pip. Empty when everything is there. Raises `Unresolved`."""
    arguments = [*_arguments(pip, question), *question.index.arguments()]
    elsewhere = question.target.markers() if question.target else None
    return _ask(pip, arguments, question.goal, question.pins, said, elsewhere)


def resolve_from(pip: Pip, goal: Goal, folders: Iterable[Path], *, afresh: bool) -> tuple[Wheel, ...]:
    """The same from folders of wheels alone; what lies there decides the versions, not pins. Raises `Unresolved`."""
    arguments = ["--no-index", *(part for folder in folders for part in ("--find-links", str(folder)))]
    arguments += ["--ignore-installed"] if afresh else []
    return _ask(pip, arguments, goal, (), None, None, alone=True)


def read_plan(folder: Path, pip: Pip, question: Question) -> tuple[Wheel, ...] | None:
    """The wheels of an earlier run that asked the same question, or None."""
    try:
        kept = read_json(folder / PLAN_FILE)
        if not isinstance(kept, dict):
            return None
        wheels = tuple(Wheel(**wheel) for wheel in kept["wheels"])
        others, names = dict(kept["others"]), {wheel.name for wheel in wheels}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    for name in names:
        others.pop(name, None)
    same = kept.get("question") == _digest(pip, question) and others == question.others(names)
    return wheels if same else None


def write_plan(folder: Path, pip: Pip, question: Question, wheels: Iterable[Wheel]) -> None:
    """Keep the answer for a later start."""
    write_json(
        folder / PLAN_FILE,
        {
            "question": _digest(pip, question),
            "others": question.others(()),
            "wheels": [asdict(wheel) for wheel in wheels],
        },
    )


def drop_plan(folder: Path) -> None:
    """Ask the index again next time."""
    (folder / PLAN_FILE).unlink(missing_ok=True)


def _arguments(pip: Pip, question: Question) -> list[str]:
    found = ["--use-feature=fast-deps"] if pip.resolves_lazily else []
    if question.afresh:
        found.append("--ignore-installed")
    if question.target is not None:
        found += [part for platform_tag in question.target.tags() for part in ("--platform", platform_tag)]
        found += ["--python-version", question.target.python_version] if question.target.python_version else []
        # Nothing is put there; pip before 23.3 insists on it even for a dry run.
        found += ["--target", tempfile.gettempdir()]
    return found


def _ask(
    pip: Pip,
    arguments: list[str],
    goal: Goal,
    pins: tuple[str, ...],
    said: Said | None,
    elsewhere: Mapping[str, str] | None,
    *,
    alone: bool = False,
) -> tuple[Wheel, ...]:
    with tempfile.TemporaryDirectory() as place:
        report, constraints = Path(place) / "report.json", Path(place) / "pins.txt"
        constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
        pip.run(
            "install",
            "--dry-run",
            "--only-binary=:all:",
            "--constraint",
            str(constraints),
            "--report",
            str(report),
            *arguments,
            *goal.requirements,
            said=said,
            elsewhere=elsewhere,
            alone=alone,
        )
        told = json.loads(report.read_text(encoding="utf-8"))
    wheels = [_wheel(entry) for entry in told["install"]]
    return tuple(sorted(wheels, key=lambda wheel: wheel.name))


def _wheel(entry: Mapping[str, Any]) -> Wheel:
    url = str(entry["download_info"]["url"])
    # What a server calls a file must not lead out of the folder: only the last part of its path is taken.
    file = unquote(urlsplit(url).path).rpartition("/")[2]
    name = canonicalize_name(entry["metadata"]["name"])
    try:
        named, _, _, _ = parse_wheel_filename(file)
    except InvalidWheelFilename as error:
        raise Unresolved(problem=f"{url}: {error}") from error
    if named != name:
        raise Unresolved(problem=f"{url} is not a wheel of {name}")
    archive = entry["download_info"].get("archive_info") or {}
    digest = (archive.get("hashes") or {}).get("sha256")
    return Wheel(name, str(entry["metadata"]["version"]), file, url, digest)


def _digest(pip: Pip, question: Question) -> str:
    asked = {
        "goal": [question.goal.requirements, question.goal.pins],
        "index": [question.index.arguments(), sorted(pip.configuration.items())],
        "target": [question.target.platforms, question.target.python_version] if question.target else None,
        "python": [pip.environment.python, platform.python_version(), platform.platform(), platform.machine()],
        "afresh": question.afresh,
    }
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def with_sizes(wheels: Iterable[Wheel], sizes: Mapping[str, int]) -> tuple[Wheel, ...]:
    """The wheels, their sizes filled in by file name where they are known."""
    return tuple(replace(wheel, size_bytes=sizes.get(wheel.file, wheel.size_bytes)) for wheel in wheels)
