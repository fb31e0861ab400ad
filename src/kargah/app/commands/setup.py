"""`kargah setup compute`: bring the training part here, or onto a stick for another machine."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from kargah.app.commands.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    AsJson,
    err,
    fail,
    language,
    print_json,
    progress_bar,
    show_rows,
    tell,
)
from kargah.app.setup.environment import Environment, Proof
from kargah.app.setup.fetching import Arriving
from kargah.app.setup.goal import Goal, Target, compute_goal
from kargah.app.setup.pip_program import IndexOptions
from kargah.app.setup.steps import FromFolders, FromIndex, Plan, sole_writer, standing
from kargah.ground.errors import DiskFull, KargahError, Offline
from kargah.ground.settings import load_settings
from kargah.text.messages import translate
from kargah.text.sizes import human_size

WHEELS_FOLDER = "wheels"
_SHOWN_FILES = 4


def say(key: str, /, **params: Any) -> str:
    """A sentence of this command, in the terminal's language."""
    return translate(f"setup.{key}", language(), **params)


app = typer.Typer(no_args_is_help=True)


@app.callback()
def _setup() -> None:
    """Keeps `compute` a word of its own."""


@app.command("compute", help=say("help.compute"))
def compute(
    folders: Annotated[list[Path] | None, typer.Option("--from", metavar="DIR", help=say("help.from"))] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help=say("help.to"))] = None,
    index_url: Annotated[str | None, typer.Option("--index-url", metavar="URL", help=say("help.indexUrl"))] = None,
    extra_index_urls: Annotated[
        list[str] | None, typer.Option("--extra-index-url", metavar="URL", help=say("help.extraIndexUrl"))
    ] = None,
    torch: Annotated[str | None, typer.Option("--torch", metavar="VERSION", help=say("help.torch"))] = None,
    platforms: Annotated[list[str] | None, typer.Option("--platform", metavar="TAG", help=say("help.platform"))] = None,
    python_version: Annotated[
        str | None, typer.Option("--python-version", metavar="3.N", help=say("help.pythonVersion"))
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=say("help.dryRun"))] = False,
    as_json: AsJson = False,
) -> None:
    """Bring torch, transformers and what they need. Whatever came stays when it breaks off; a new start goes on."""
    if folders and (to or index_url or extra_index_urls):
        raise typer.BadParameter(say("fromAlone"), param_hint="--from")
    if (platforms or python_version) and not to:
        raise typer.BadParameter(say("onlyWithTo"), param_hint="--to")
    target = Target(tuple(platforms or ()), python_version) if platforms or python_version else None
    index = IndexOptions(index_url, tuple(extra_index_urls or ()))
    environment = Environment(sys.executable)
    try:
        goal = compute_goal(torch=torch, whole=to is not None, target=target)
        if folders:
            told = from_folders(goal, environment, folders, dry_run=dry_run, quiet=as_json)
        else:
            told = from_index(goal, environment, to, index, target=target, dry_run=dry_run, quiet=as_json)
    except KargahError as error:
        fail(_sentence(error), EXIT_FAILED)
    except KeyboardInterrupt:
        fail(say("interrupted"), EXIT_INTERRUPTED)
    if as_json:
        print_json(told)


def from_folders(
    goal: Goal, environment: Environment, folders: Sequence[Path], *, dry_run: bool, quiet: bool
) -> dict[str, Any]:
    """Install from folders of wheels, showing it. Raises `SetupFailed` and `DiskFull`."""
    proof = standing(goal, environment, must_install=not dry_run)
    if proof is not None:
        return _complete(proof, quiet=quiet)
    source = FromFolders(goal, environment, folders)
    with _bar(quiet) as bar:
        task = bar.add_task(say("verifying"), total=source.total_bytes())
        source.verify(lambda num_bytes: bar.advance(task, num_bytes))
    with _talking(say("resolvingFrom"), quiet) as said:
        plan = source.plan(said)
    _show(plan, dry_run=dry_run, quiet=quiet)
    if dry_run:
        return _told("planned", plan)
    with _talking(say("installing"), quiet) as said:
        proof = source.install(plan, said)
    return _installed(plan, proof, quiet=quiet)


def from_index(
    goal: Goal,
    environment: Environment,
    to: Path | None,
    index: IndexOptions,
    *,
    target: Target | None = None,
    dry_run: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Fetch and, without `to`, install, showing it. Raises `SetupFailed`, `DiskFull` and `Offline`."""
    settings = load_settings()
    if to is None:
        proof = standing(goal, environment, must_install=not dry_run)
        if proof is not None:
            return _complete(proof, quiet=quiet)
    if settings.offline:
        raise Offline
    folder = to or settings.home / WHEELS_FOLDER
    with sole_writer(folder):
        source = FromIndex(goal, environment, folder, index, target=target, to_keep=to is not None)
        with _talking(say("resolving"), quiet) as said:
            plan = source.plan(said)
        _show(plan, dry_run=dry_run, quiet=quiet, here=to is None)
        if dry_run:
            return _told("planned", plan)
        with _bar(quiet) as bar:
            source.fetch(plan, Board(bar, lines=bar.disable and not quiet))
        if to is not None:
            if not quiet:
                _say("fetched", path=str(folder), size=human_size(plan.total_bytes))
            return {**_told("fetched", plan), "path": str(folder)}
        with _talking(say("installing"), quiet) as said:
            proof = source.install(plan, said)
    told = _installed(plan, proof, quiet=quiet)
    if not quiet:
        _say("kept", path=str(folder), size=human_size(plan.total_bytes))
    return told


class Board:
    """Bars for all bytes together and for the wheels that are coming; `lines` instead, where there is no terminal."""

    def __init__(self, bar: Progress, *, lines: bool) -> None:
        self._bar = bar
        self._lines = lines
        self._arrived: set[str] = set()
        self._all: TaskID | None = None
        self._files: dict[str, TaskID] = {}

    def __call__(self, arriving: Sequence[Arriving]) -> None:
        """Show how far everything is."""
        if self._lines:
            for one in arriving:
                if one.done and one.wheel.file not in self._arrived:
                    self._arrived.add(one.wheel.file)
                    tell(f"{one.wheel.file}  {human_size(one.length)}", to_errors=True)
            return
        sizes = [one.wheel.size_bytes for one in arriving]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        if self._all is None:
            self._all = self._bar.add_task(say("all"), total=total)
        self._bar.update(self._all, completed=sum(one.length for one in arriving), total=total)
        shown = [one for one in arriving if one.begun and not one.done][:_SHOWN_FILES]
        for file in set(self._files) - {one.wheel.file for one in shown}:
            self._bar.remove_task(self._files.pop(file))
        for one in shown:
            wheel = one.wheel
            if wheel.file not in self._files:
                self._files[wheel.file] = self._bar.add_task(wheel.name, total=wheel.size_bytes, completed=one.length)
            seconds = int(one.waiting_until - time.monotonic())
            name = say("waiting", name=wheel.name, seconds=seconds) if seconds > 0 else wheel.name
            self._bar.update(self._files[wheel.file], description=name, completed=one.length)


def _bar(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, disable=True) if quiet else progress_bar(*columns)


@contextmanager
def _talking(sentence: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A spinner with the latest line of pip behind it: over a slow network that is the sign of life."""
    if quiet:
        yield lambda line: None
        return
    with progress_bar(TextColumn("{task.description}"), TextColumn("{task.fields[line]}", markup=False)) as bar:
        task = bar.add_task(sentence, total=None, line="")
        room = max(20, err.width - len(sentence) - 2)
        yield lambda line: bar.update(task, line=line[:room])


def _show(plan: Plan, *, dry_run: bool, quiet: bool, here: bool = True) -> None:
    if quiet:
        return
    if dry_run:
        show_rows(None, [(one.name, one.version, human_size(one.size_bytes) or "?", one.host) for one in plan.wheels])
    _say(
        "plan",
        num=len(plan.wheels),
        size=human_size(plan.total_bytes),
        missing=human_size(plan.missing_bytes),
        needed=human_size(plan.needed_bytes),
    )
    if here and plan.needless_cuda():
        tell(say("needlessCuda"), to_errors=True, style="yellow")
    if not plan.pip.resolves_lazily and any(not wheel.local for wheel in plan.wheels):
        # Said after the fact for this start, and in time for the next.
        tell(say("oldPip", version=str(plan.pip.version)), to_errors=True, style="yellow")


def _complete(proof: Proof, *, quiet: bool) -> dict[str, Any]:
    if not quiet:
        _say("complete", what=_words(proof))
    return {"status": "complete", **_proved(proof)}


def _installed(plan: Plan, proof: Proof, *, quiet: bool) -> dict[str, Any]:
    if not quiet:
        _say("installed", what=_words(proof))
    return {**_told("installed", plan), **_proved(proof)}


def _told(status: str, plan: Plan) -> dict[str, Any]:
    return {
        "status": status,
        "pip": str(plan.pip.version),
        "totalBytes": plan.total_bytes,
        "missingBytes": plan.missing_bytes,
        "neededBytes": plan.needed_bytes,
        "wheels": [_camel(asdict(wheel)) for wheel in plan.wheels],
    }


def _camel(wheel: dict[str, Any]) -> dict[str, Any]:
    return {"sizeBytes" if name == "size_bytes" else name: value for name, value in wheel.items()}


def _proved(proof: Proof) -> dict[str, Any]:
    return {"versions": dict(proof.versions), "devices": list(proof.devices)}


def _words(proof: Proof) -> str:
    return " · ".join([*(f"{name} {version}" for name, version in proof.versions.items()), *proof.devices])


def _say(key: str, /, **params: Any) -> None:
    tell(say(key, **params))


def _sentence(error: KargahError) -> str:
    sentence = f"{error.message(language())} [{error.code}]"
    if isinstance(error, DiskFull) and isinstance(error.details, dict) and "neededBytes" in error.details:
        needed, free = (human_size(error.details[name]) for name in ("neededBytes", "freeBytes"))
        return f"{sentence}\n{say('space', path=error.details['path'], needed=needed, free=free)}"
    return sentence
