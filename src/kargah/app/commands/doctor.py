"""`kargah doctor`: whether this machine and this installation are fit, each finding with what to do."""

import os
import platform
import shutil
import sqlite3
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal

import httpx
import psutil
import typer

from kargah import __version__
from kargah.app.client import ApiError, Client, ServerUnreachable
from kargah.app.commands.console import EXIT_FAILED, language, out, print_json, say
from kargah.assets.catalog import load_catalog
from kargah.ground.errors import CannotStart
from kargah.ground.settings import Settings, load_settings
from kargah.runs.executor import NEEDED
from kargah.text.sizes import human_size

MIN_FREE_BYTES = 5_000_000_000
MIN_MEMORY_BYTES = 4_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    subject: str
    state: Literal["ok", "warning", "error"]
    message: str


def doctor(as_json: Annotated[bool, typer.Option("--json", help="as JSON, for programs")] = False) -> None:
    """Look at this machine and this installation. Exit code 1 when something is broken."""
    findings = examine()
    if as_json:
        print_json({"version": __version__, "findings": [asdict(finding) for finding in findings]})
    else:
        marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}
        for finding in findings:
            mark, style = marks[finding.state]
            out.print(f"[{style}]{mark}[/] {say('doctor.' + finding.subject)}: ", end="")
            out.print(finding.message, markup=False)
    if any(finding.state == "error" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def examine() -> list[Finding]:
    """Every finding, in reading order."""
    findings = [
        Finding("python", "ok", f"{platform.python_version()} · {sys.executable}"),
        Finding("sqlite", "ok" if sqlite3.sqlite_version_info >= (3, 35) else "error", sqlite3.sqlite_version),
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


def _compute() -> Finding:
    found = []
    for name in NEEDED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return Finding("compute", "warning", say("doctor.noCompute"))
    return Finding("compute", "ok", " · ".join(found))


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    state: Literal["ok", "warning"] = "ok" if memory.total >= MIN_MEMORY_BYTES else "warning"
    cores = f"{psutil.cpu_count(logical=False) or '?'}/{os.cpu_count()}"
    return Finding("memory", state, f"{human_size(memory.available)} / {human_size(memory.total)} · {cores} CPU")


def _disk(settings: Settings) -> Finding:
    place = settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Finding("disk", "error", say("doctor.notWritable", path=str(place)))
    return Finding(
        "disk", "ok" if free >= MIN_FREE_BYTES else "warning", say("doctor.free", size=human_size(free) or "")
    )


def _catalog(settings: Settings) -> Finding:
    try:
        catalog = load_catalog(settings.catalog)
    except CannotStart as error:
        return Finding("catalog", "error", error.message(language()))
    models, datasets = len(catalog.of_kind("model")), len(catalog.of_kind("dataset"))
    return Finding("catalog", "ok", say("doctor.entries", models=models, datasets=datasets))


def _server(settings: Settings) -> Finding:
    token = settings.token.get_secret_value() if settings.token else None
    client = Client(settings.url, token, language())
    try:
        health = client.get("/api/health")
    except ServerUnreachable:
        return Finding("server", "warning", say("doctor.noServer", url=settings.url))
    except ApiError as error:
        return Finding("server", "error", error.message)
    finally:
        client.close()
    return Finding("server", "ok", f"{settings.url} · {health['version']} · {health['database']}")


def _hubs(settings: Settings) -> list[Finding]:
    if settings.offline:
        return [Finding("hub", "ok", say("doctor.offline"))]
    findings = []
    for url in settings.hub_endpoint:
        try:
            answer = httpx.get(f"{url}/api/models", params={"limit": 1}, timeout=5.0, follow_redirects=True)
            good = answer.status_code < 400 and "json" in answer.headers.get("content-type", "")
            problem = "" if good else f"HTTP {answer.status_code}"
        except httpx.HTTPError as error:
            good, problem = False, f"{type(error).__name__}: {error}"
        findings.append(Finding("hub", "ok" if good else "warning", f"{url} {problem}".strip()))
    return findings
