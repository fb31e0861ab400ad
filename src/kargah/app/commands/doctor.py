"""`kargah doctor`: whether this machine and this installation are fit, each finding with what to do.

Plain, it looks and measures nothing; with `--full` it trains on every device, tries the disk and the hubs, and prints
a report that can be pasted into an issue (`kargah.app.doctor`).
"""

import errno
import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import psutil
import typer

from kargah import __version__
from kargah.app.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, AsJson, err, fail, language, out, print_json
from kargah.app.doctor.disk import MIN_FREE_BYTES
from kargah.app.doctor.findings import Finding, State
from kargah.app.doctor.full import Health, examine_fully
from kargah.app.doctor.report import as_text
from kargah.app.doctor.system import MIN_MEMORY_BYTES
from kargah.assets.catalog import load_catalog
from kargah.client import ApiError, Client, ServerUnreachable
from kargah.ground.errors import CannotStart
from kargah.ground.settings import Settings, load_settings
from kargah.hub.reachability import try_configured
from kargah.runs.executor import NEEDED
from kargah.text.messages import translate
from kargah.text.sizes import human_size

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def _say(key: str, /, **params: object) -> str:
    return translate(f"doctor.{key}", language(), **params)


def doctor(
    full: Annotated[bool, typer.Option("--full", help=_say("help.full"))] = False,
    device: Annotated[list[str] | None, typer.Option("--device", help=_say("help.device"))] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help=_say("help.rebuild"))] = False,
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", hidden=True)] = False,
) -> None:
    """Look at this machine and this installation. Exit code 1 when something is broken."""
    if rebuild:
        # Only here: it takes every room of the server.
        from kargah.app.commands.rebuilding import rebuild_database

        rebuild_database(as_json)
        return
    if full:
        findings = _full(device or [], as_json=as_json, quick=quick)
    elif device:
        raise typer.BadParameter(_say("needsFull"))
    else:
        findings = examine()
        if as_json:
            print_json({"version": __version__, "findings": [asdict(finding) for finding in findings]})
        else:
            _show(findings)
    if any(finding.state == "error" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def examine() -> list[Finding]:
    """Every finding of the quick look, in reading order."""
    findings = [
        Finding("python", "ok", f"{platform.python_version()} · {sys.executable}"),
        _sqlite(),
        _compute(),
        _memory(),
    ]
    try:
        settings = load_settings()
    except CannotStart as error:
        return [*findings, Finding("settings", "error", error.message(language()))]
    findings.append(Finding("settings", "ok", str(settings.home)))
    findings.append(_disk(settings))
    findings.append(_catalog(settings))
    findings.append(_server(settings))
    findings.extend(_hubs(settings))
    return findings


def _full(wanted: list[str], *, as_json: bool, quick: bool) -> list[Finding]:
    first = [Finding("python", "ok", platform.python_version()), _sqlite()]
    settings = None
    try:
        settings = load_settings()
        first.append(_catalog(settings))
    except CannotStart as error:
        first.append(Finding("settings", "error", error.message(language())))
    try:
        report = examine_fully(settings, _health, language(), first, wanted, _tell_progress, quick=quick)
    except KeyboardInterrupt:
        fail(_say("interrupted"), EXIT_INTERRUPTED)
    if as_json:
        findings = [asdict(finding) for finding in report.findings]
        print_json({"version": __version__, "findings": findings, "report": report.facts})
    else:
        _show(report.findings)
        out.print(f"\n{_say('paste')}\n", markup=False, soft_wrap=True)
        out.print(as_text(report.facts), markup=False, soft_wrap=True)
    return report.findings


def _show(findings: Iterable[Finding]) -> None:
    for finding in findings:
        mark, style = MARKS[finding.state]
        out.print(f"[{style}]{mark}[/] {_say('subject.' + finding.subject)}: ", end="")
        out.print(finding.message, markup=False, soft_wrap=True)


def _tell_progress(subject: str, name: str) -> None:
    """On standard error, so that neither the report nor the JSON holds it."""
    what = f"{_say(f'subject.{subject}')} {name}".rstrip()
    err.print(_say("looking", what=what), markup=False, style="dim")


def _sqlite() -> Finding:
    return Finding("sqlite", "ok" if sqlite3.sqlite_version_info >= (3, 35) else "error", sqlite3.sqlite_version)


def _compute() -> Finding:
    found = []
    for name in NEEDED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return Finding("compute", "warning", _say("compute.missing"))
    return Finding("compute", "ok", " · ".join(found))


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    state: State = "ok" if memory.total >= MIN_MEMORY_BYTES else "warning"
    cores = f"{psutil.cpu_count(logical=False) or '?'}/{os.cpu_count()}"
    return Finding("memory", state, f"{human_size(memory.available)} / {human_size(memory.total)} · {cores} CPU")


def _disk(settings: Settings) -> Finding:
    place = settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        problem = os.strerror(errno.EACCES)
        return Finding("disk", "error", _say("disk.notWritable", path=str(place), problem=problem))
    if free < MIN_FREE_BYTES:
        return Finding("disk", "warning", _say("disk.few", size=human_size(free)))
    return Finding("disk", "ok", _say("disk.free", size=human_size(free)))


def _catalog(settings: Settings) -> Finding:
    try:
        catalog = load_catalog(settings.catalog)
    except CannotStart as error:
        return Finding("catalog", "error", error.message(language()))
    models, datasets = len(catalog.of_kind("model")), len(catalog.of_kind("dataset"))
    return Finding("catalog", "ok", _say("catalog.entries", models=models, datasets=datasets))


def _server(settings: Settings) -> Finding:
    health = _health(settings)
    if health.problem is not None:
        return Finding("server", "error", health.problem)
    if health.version is None:
        return Finding("server", "warning", _say("server.noneAt", url=settings.url))
    return Finding("server", "ok", f"{settings.url} · {health.version} · {health.database}")


def _health(settings: Settings) -> Health:
    token = settings.token.get_secret_value() if settings.token else None
    client = Client(settings.url, token, language())
    try:
        said = client.get("/api/health")
    except ServerUnreachable:
        return Health()
    except ApiError as error:
        return Health(problem=error.message)
    finally:
        client.close()
    return Health(str(said["version"]), str(said["database"]))


def _hubs(settings: Settings) -> list[Finding]:
    if settings.offline:
        return [Finding("hub", "ok", _say("hub.offline"))]
    return [
        Finding(
            "hub", "ok" if reached.is_usable else "warning", f"{reached.endpoint.url}: {reached.message(language())}"
        )
        for reached in try_configured(settings, [], with_speed=False)
    ]
