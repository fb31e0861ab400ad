"""`kargah setup compute`: real pip, real sockets and a package index of the test's own; nothing leaves the machine."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from package_index import BIG_BYTES, Moods, PackageIndex, killed_at_the_gate, make_wheel, serving, tiny_packages
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rich.console import Console
from rich.progress import Progress

from kargah.app.commands.setup import Board, from_folders, from_index
from kargah.app.setup.environment import Environment
from kargah.app.setup.errors import (
    ExternallyManaged,
    Unresolved,
    WheelsBusy,
    WheelsDamaged,
    WheelsMissing,
)
from kargah.app.setup.fetching import Arriving
from kargah.app.setup.folder import SUMS_FILE, read_sums, this_machine, write_sums
from kargah.app.setup.goal import Goal, Target, compute_goal, read_pins
from kargah.app.setup.installing import check_space
from kargah.app.setup.pip_program import RESOLVING_PIP, IndexOptions, Pip, find_pip
from kargah.app.setup.resolving import Question, Wheel, resolve
from kargah.app.setup.steps import Plan, sole_writer, standing
from kargah.ground.errors import DiskFull
from kargah.spec.lock import FileLock

ROOT = Path(__file__).parents[2]
GOAL = Goal(("tiny-torch>=1", "tiny-transformers==2.0"), ("tiny-torch==1.1",), ("tiny_torch", "tiny_transformers"))
OLD_PIP = Version(distribution("pip").version) < RESOLVING_PIP
CLI = "from kargah.app.commands.setup import app; app(prog_name='setup')"


@pytest.fixture(autouse=True)
def _pip_without_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("KARGAH_LANG", "en")


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with serving(tiny_packages()) as one:
        yield one


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment without anything, pip included, as other tools than venv make them."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    return Environment(str(place / "bin" / "python"))


def _plan(
    index: PackageIndex, goal: Goal = GOAL, *, target: Target | None = None, url: str | None = None
) -> dict[str, str]:
    environment = Environment(sys.executable)
    options = IndexOptions(url or index.url)
    pip = find_pip(environment, [Path(os.devnull)], None, lambda line: None)
    wheels = resolve(pip, Question(goal, options, target, environment.look(), afresh=True))
    assert all(wheel.sha256 == hashlib.sha256(index.wheels[wheel.file]).hexdigest() for wheel in wheels)
    return {wheel.name: wheel.version for wheel in wheels}


@pytest.mark.skipif(OLD_PIP, reason="pip before 25.3 fetches wheels whole to resolve")
def test_resolving_fetches_no_wheel(index: PackageIndex) -> None:
    assert _plan(index) == {"tiny-torch": "1.1", "tiny-transformers": "2.0", "tiny-maths": "1.0"}
    assert index.total_sent_bytes == 0
    index.moods = Moods(metadata=False)
    assert _plan(index) == {"tiny-torch": "1.1", "tiny-transformers": "2.0", "tiny-maths": "1.0"}
    assert index.total_sent_bytes < BIG_BYTES / 3, "ranged requests read the metadata out of the wheels"


def test_resolving_for_another_system_takes_its_markers(index: PackageIndex) -> None:
    assert "tiny-words" in _plan(index, target=Target(("macosx_11_0_arm64",), "3.12"))
    assert "tiny-words" not in _plan(index, target=Target(("manylinux_2_28_aarch64",)))
    index.add(make_wheel("tiny-maths", "2.0", tag="cp312-cp312-manylinux_2_17_x86_64"))
    assert _plan(index, target=Target(("manylinux_2_28_x86_64",), "3.12"))["tiny-maths"] == "2.0"
    assert _plan(index, target=Target(("manylinux_2_12_x86_64",), "3.12"))["tiny-maths"] == "1.0"


def test_what_cannot_be_resolved_is_said_in_pips_words(index: PackageIndex) -> None:
    with pytest.raises(Unresolved, match="tiny-torch==7"):
        _plan(index, replace(GOAL, requirements=("tiny-torch==7",), pins=()))
    with pytest.raises(Unresolved, match="depends on tiny-maths>=1"):
        _plan(index, replace(GOAL, requirements=("tiny-torch",), pins=("tiny-maths==0.1",)))


def _repacked_pip() -> tuple[str, bytes]:
    """The pip of these tests, as a wheel again."""
    own = distribution("pip")
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in own.files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(str(own.locate_file(file)), str(file))
    return f"pip-{own.version}-py3-none-any.whl", sink.getvalue()


def test_from_an_index_into_an_environment_and_again(
    index: PackageIndex, bare: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pip, over connections that break; afterwards an installation that was broken off half-way."""
    monkeypatch.setenv("KARGAH_HOME", str(tmp_path))
    options = IndexOptions(index.url)
    if not OLD_PIP:
        # ensurepip brings a pip that is too old, so one comes from the index.
        index.add(_repacked_pip())
    planned = from_index(GOAL, bare, None, options, dry_run=True, quiet=True)
    assert planned["status"] == "planned"
    if not OLD_PIP:
        assert Version(planned["pip"]) >= RESOLVING_PIP, "the one that ensurepip brought is passed over"
        assert index.total_sent_bytes == len(index.wheels[_repacked_pip()[0]])
    assert planned["missingBytes"] == planned["totalBytes"]
    index.forget()
    index.moods = Moods(drop_every_bytes=100_000)
    told = from_index(GOAL, bare, None, options, dry_run=False, quiet=True)
    assert told["status"] == "installed"
    assert told["versions"] == {"tiny_torch": "1.1", "tiny_transformers": "2.0"}
    assert {wheel["name"] for wheel in told["wheels"]} == {"tiny-torch", "tiny-transformers", "tiny-maths"}
    assert told["totalBytes"] == index.total_sent_bytes
    index.forget()
    again = from_index(GOAL, bare, None, options, dry_run=False, quiet=True)
    assert again["status"] == "complete"
    assert index.asked == []

    # pip writes RECORD last: without it the installation was broken off.
    site = bare.look().site
    (site / "tiny_torch-1.1.dist-info" / "RECORD").unlink()
    (site / "tiny_torch" / "__init__.py").unlink()
    mended = from_index(GOAL, bare, None, options, dry_run=False, quiet=True)
    assert mended["status"] == "installed"
    assert index.total_sent_bytes == 0, "the wheels were still there"

    (site / "tiny_maths" / "__init__.py").write_text("import nowhere")
    (site / "tiny_torch" / "__init__.py").write_text("import tiny_maths")
    renewed = from_index(GOAL, bare, None, options, dry_run=False, quiet=True)
    assert renewed["status"] == "installed"
    assert index.total_sent_bytes == 0


def test_killed_in_the_middle_and_started_again(index: PackageIndex, tmp_path: Path) -> None:
    """`--to` in a process of its own, killed by SIGKILL; the second start fetches only what is missing."""
    goal = compute_goal(whole=True)
    index.wheels.clear()
    index.add(*(_stand_in(requirement) for requirement in goal.requirements))
    total = sum(map(len, index.wheels.values()))
    command = [
        sys.executable,
        "-c",
        CLI,
        "compute",
        "--to",
        str(tmp_path / "stick"),
        "--index-url",
        index.url,
        "--json",
    ]
    if not OLD_PIP:
        killed_at_the_gate(index, command, tmp_path / "stick")
    index.moods = Moods()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KARGAH_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "fetched"
    assert told["totalBytes"] == total
    if not OLD_PIP:
        assert index.total_sent_bytes == total, "no byte came twice"
    sums = read_sums(tmp_path / "stick")
    assert {name for name in sums if not name.startswith("pip-")} == set(index.wheels)
    checked = subprocess.run(["sha256sum", "-c", SUMS_FILE], cwd=tmp_path / "stick", capture_output=True)
    assert checked.returncode == 0
    index.forget()
    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KARGAH_HOME": str(tmp_path)})
    assert json.loads(again.stdout)["missingBytes"] == 0
    assert index.total_sent_bytes == 0


def _stand_in(requirement: str) -> tuple[str, bytes]:
    """A wheel for one of Kargah's real requirements, at the version that is pinned."""
    name = Requirement(requirement).name
    pinned = {canonicalize_name(pin.split("==")[0]): pin.split("==")[1] for pin in read_pins()}
    return make_wheel(name, pinned[canonicalize_name(name)], payload_bytes=60_000)


@pytest.fixture
def stick(index: PackageIndex, tmp_path: Path) -> Path:
    folder = tmp_path / "فلش"
    folder.mkdir()
    for file, content in index.wheels.items():
        (folder / file).write_bytes(content)
    write_sums(folder, {file: hashlib.sha256(content).hexdigest() for file, content in index.wheels.items()})
    return folder


def _from(folder: Path, environment: Environment, goal: Goal = GOAL, *, dry_run: bool = False) -> dict[str, Any]:
    return from_folders(goal, environment, [folder], dry_run=dry_run, quiet=True)


def test_from_a_folder_without_a_network(stick: Path, index: PackageIndex, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    environment = Environment(str(place / "bin" / "python"))
    (stick / "tiny_torch-1.2-py3-none-any.whl").unlink()
    sums = read_sums(stick)
    sums.pop("tiny_torch-1.2-py3-none-any.whl")
    write_sums(stick, sums)
    told = _from(stick, environment)
    assert told["status"] == "installed"
    assert told["versions"]["tiny_torch"] == "1.1"
    assert index.asked == []
    assert _from(stick, environment)["status"] == "complete"


def test_what_a_folder_lacks_is_named_and_for_whom_the_others_are(stick: Path) -> None:
    (stick / "tiny_maths-1.0-py3-none-any.whl").rename(stick / "tiny_maths-1.0-cp27-cp27m-win32.whl")
    (stick / SUMS_FILE).unlink()
    environment = Environment(sys.executable)
    with pytest.raises(WheelsMissing) as caught:
        _from(stick, environment)
    assert caught.value.details == {"missing": ["tiny-maths>=1 (tiny_maths-1.0-cp27-cp27m-win32.whl)"]}
    assert this_machine() in caught.value.message("en")
    for path in stick.glob("tiny_t*.whl"):
        path.unlink()
    with pytest.raises(WheelsMissing, match=r"tiny-transformers==2\.0"):
        _from(stick, environment)


def test_damaged_wheels_are_named(stick: Path) -> None:
    torch, words = stick / "tiny_torch-1.1-py3-none-any.whl", stick / "tiny_words-1.0-py3-none-any.whl"
    content = bytearray(torch.read_bytes())
    content[len(content) // 2] ^= 1
    torch.write_bytes(content)
    words.unlink()
    with pytest.raises(WheelsDamaged) as caught:
        _from(stick, Environment(sys.executable))
    assert {torch.name, words.name} == set(caught.value.params["files"].split(", "))
    # A folder that somebody filled by hand has no sums: the wheels' own checksums tell.
    (stick / SUMS_FILE).unlink()
    with pytest.raises(WheelsDamaged) as caught:
        _from(stick, Environment(sys.executable))
    assert caught.value.params["files"] == torch.name


def test_a_python_of_the_operating_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").write_text("[externally-managed]\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, sysconfig\nsys.base_prefix = sys.prefix\nbefore = sysconfig.get_path\n"
        f"sysconfig.get_path = lambda name, *rest: {str(tmp_path)!r} if name == 'stdlib' else before(name, *rest)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment = Environment(sys.executable)
    with pytest.raises(ExternallyManaged) as caught:
        standing(GOAL, environment, must_install=True)
    assert "venv" in caught.value.message("en")
    assert standing(GOAL, environment, must_install=False) is None


def test_one_setup_at_a_time(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "setup.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(WheelsBusy, match=str(holder.pid)), sole_writer(tmp_path):
        pass
    holder.communicate()
    with sole_writer(tmp_path):
        pass


_HOLD = f"""
import sys
from pathlib import Path
from {FileLock.__module__} import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_disk_that_cannot_hold_it_is_said_before_anything_comes(tmp_path: Path) -> None:
    wheel = Wheel("a", "1", "a-1-py3-none-any.whl", "https://index.invalid/a", size_bytes=10**15)
    with pytest.raises(DiskFull) as caught:
        check_space(tmp_path / "not" / "yet", 10**15, None, [wheel], [])
    assert isinstance(caught.value.details, dict)
    assert caught.value.details["neededBytes"] > 10**15
    with pytest.raises(DiskFull):
        check_space(None, 0, tmp_path, [wheel], [])
    assert check_space(None, 0, None, [wheel], []) == 0


def test_cuda_without_a_gpu_is_noticed(tmp_path: Path) -> None:
    pip = Pip(Environment(sys.executable), RESOLVING_PIP)
    cuda = Wheel("nvidia-cublas-cu12", "1", "nvidia_cublas_cu12-1-py3-none-any.whl", "https://index.invalid/a")
    plain = Wheel("torch", "1", "torch-1-py3-none-any.whl", "https://index.invalid/b")
    (tmp_path / "nvidia0").touch()
    assert Plan(pip, (cuda, plain), 0, 0).needless_cuda([tmp_path / "absent"])
    assert not Plan(pip, (cuda, plain), 0, 0).needless_cuda([tmp_path / "nvidia0"])
    assert not Plan(pip, (plain,), 0, 0).needless_cuda([tmp_path / "absent"])


def test_the_bars_show_all_of_it_and_the_wheels_that_are_coming() -> None:
    sink = io.StringIO()
    with Progress(console=Console(file=sink, force_terminal=True, width=100)) as bar:
        board = Board(bar, lines=False)
        one, two = (
            Arriving(Wheel(name, "1", f"{name}-1-py3-none-any.whl", "https://index.invalid/x", size_bytes=1000))
            for name in ("first", "second")
        )
        one.begun, one.length, one.waiting_until = True, 400, time.monotonic() + 100
        board([one, two])
        assert [(task.completed, task.total) for task in bar.tasks] == [(400, 2000), (400, 1000)]
        assert "asks to wait" in bar.tasks[1].description
        one.done, one.length, two.begun = True, 1000, True
        board([one, two])
        assert [(task.completed, task.total) for task in bar.tasks] == [(1000, 2000), (0, 1000)]
        assert bar.tasks[1].description == "second"


def test_the_command_says_what_is_wrong(index: PackageIndex, tmp_path: Path) -> None:
    index.wheels.clear()

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CLI, "compute", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "KARGAH_HOME": str(tmp_path), **environment}
        )

    nothing = run("--to", str(tmp_path / "stick"), "--index-url", index.url)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "[REQUIREMENTS_UNRESOLVED]" in nothing.stderr
    assert "Traceback" not in nothing.stderr
    persian = run("--to", str(tmp_path / "stick"), KARGAH_OFFLINE="1", KARGAH_LANG="fa")
    assert persian.returncode == 1
    assert "بی‌شبکه" in persian.stderr or "OFFLINE" in persian.stderr
    assert run("--from", str(tmp_path), "--index-url", index.url).returncode == 2
    assert run("--platform", "manylinux_2_28_x86_64").returncode == 2


def test_it_says_when_everything_is_there() -> None:
    goal = compute_goal()
    if not goal.reached(Environment(sys.executable).look()):
        pytest.skip("the training part is not installed")
    done = subprocess.run([sys.executable, "-c", CLI, "compute", "--json"], capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["status"] == "complete"
    assert set(told["versions"]) == {"torch", "transformers"}
    assert told["devices"]


def test_the_goal_is_what_the_package_states() -> None:
    small, whole = compute_goal(), compute_goal(whole=True)
    names = [{canonicalize_name(Requirement(text).name) for text in goal.requirements} for goal in (small, whole)]
    assert {"torch", "transformers", "scikit-learn"} <= names[0]
    assert "fastapi" not in names[0]
    assert names[0] | {"fastapi", "pyarrow"} <= names[1]
    assert "pytest" not in names[1]
    other = compute_goal(torch="2.12.0+cu128")
    assert "torch==2.12.0+cu128" in other.requirements
    assert not any(pin.startswith("torch==") for pin in other.pins)


def test_an_installed_version_that_is_allowed_is_not_pinned_away() -> None:
    surroundings = Environment(sys.executable).look()
    pinned = {canonicalize_name(Requirement(pin).name) for pin in compute_goal().pins_for(surroundings)}
    assert not pinned & set(surroundings.versions)


def test_the_pins_are_those_of_the_constraints() -> None:
    """`pins.txt` is what `constraints.txt` says of everything but the tools of developers and the demo."""
    constraints = {
        canonicalize_name(line.split("==")[0]): line for line in (ROOT / "constraints.txt").read_text().split()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["compute"]]
    expected = sorted((constraints[name] for name in _closure(asked) if name in constraints), key=str.lower)
    missing = [name for name in _closure(asked, deep=False) if name not in constraints]
    assert missing == []
    assert list(read_pins()) == expected, "pins.txt should be:\n" + "\n".join(expected)


def _closure(texts: Sequence[str], *, deep: bool = True) -> set[str]:
    """Canonical names of requirements and, `deep`, of all that they require in turn, as far as it is installed."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in texts]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        seen = name in found
        found.add(name)
        if seen and not requirement.extras:
            continue
        try:
            needs = (distribution(name).requires or []) if deep else []
        except PackageNotFoundError:
            continue
        for text in needs:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                need.marker = None
                waiting.append(need)
    return found
