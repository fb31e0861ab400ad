"""The whole examination: every room in turn, one set of facts, one list of findings."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kargah import __version__
from kargah.app.doctor.devices import examine_devices
from kargah.app.doctor.disk import FULL, QUICK, examine_disk
from kargah.app.doctor.findings import Examination, Facts, Finding, Tell
from kargah.app.doctor.hubs import examine_hubs
from kargah.app.doctor.report import Veil
from kargah.app.doctor.system import examine_memory, examine_system
from kargah.assets.catalog import load_catalog
from kargah.ground.errors import CannotStart
from kargah.ground.settings import Settings
from kargah.hub.endpoint import is_private_host, origin_of
from kargah.text.languages import Language

NUM_ASKED_REPOS = 3


@dataclass(frozen=True, slots=True)
class Health:
    """What the server answered to `GET /api/health`; `problem` when it answered an error, nothing when nobody did."""

    version: str | None = None
    database: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything found, without anything that names a person or a place."""

    facts: Facts
    findings: list[Finding]


def examine_fully(
    settings: Settings | None,
    ask_health: Callable[[Settings], Health],
    language: Language,
    first: list[Finding],
    wanted: list[str],
    tell: Tell,
    *,
    quick: bool,
) -> Report:
    """Examine everything; without settings, what needs none. `first` are findings
    to begin with; `wanted` are devices, all when it is empty."""
    begun = time.perf_counter()
    rooms: list[tuple[str, Callable[[], Examination]]] = [
        ("system", lambda: examine_system(language)),
        ("memory", lambda: examine_memory(language)),
    ]
    if settings is not None:
        known = settings
        rooms += [
            ("disk", lambda: examine_disk(known, language, QUICK if quick else FULL)),
            ("server", lambda: _examine_server(known, ask_health(known), language)),
            ("hub", lambda: examine_hubs(known, language, _repo_ids(known))),
        ]
    rooms.append(("compute", lambda: examine_devices(language, wanted, tell, quick=quick)))
    facts: Facts = {"measuredAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "seconds": None}
    findings = list(first)
    for name, examine in rooms:
        if name != "compute":
            tell(name, "")
        examination = examine()
        facts[name] = examination.facts
        findings += examination.findings
    facts["seconds"] = round(time.perf_counter() - begun, 2)
    veil = Veil(settings)
    veiled = [Finding(finding.subject, finding.state, veil.over(finding.message)) for finding in findings]
    return Report(veil.over(facts), veiled)


def _examine_server(settings: Settings, health: Health, language: Language) -> Examination:
    found = Examination(language)
    _, host, port = origin_of(settings.url)
    found.facts = {
        "isRunning": health.version is not None,
        "version": health.version,
        "database": health.database,
        "isSameVersion": health.version == __version__ if health.version is not None else None,
        "isPrivateAddress": is_private_host(host),
        "port": port,
        "problem": health.problem,
    }
    if health.version is None:
        reason = "the server answers an error" if health.problem else "no server answers"
        found.facts["unmeasured"] = dict.fromkeys(("version", "database", "isSameVersion"), reason)
    if health.problem is not None:
        found.find("server", "error", "server.broken", problem=health.problem)
    elif health.version is None:
        found.find("server", "ok", "server.none")
    elif health.version != __version__:
        found.find("server", "warning", "server.otherVersion", server=health.version, command=__version__)
    else:
        found.find("server", "ok", "server.ok", version=health.version, database=health.database)
    return found


def _repo_ids(settings: Settings) -> list[str]:
    """A few approved models that hubs should have."""
    try:
        catalog = load_catalog(settings.catalog)
    except CannotStart:
        return []  # the catalog's own finding says so
    ids = [entry.repo_id for entry in catalog.of_kind("model") if entry.source == "HuggingFace" and not entry.gated]
    return ids[:NUM_ASKED_REPOS]
