"""`kargah catalog check` and `schema`: the catalog's files against their form, what they approve against the hubs."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from kargah.app.commands.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    AsJson,
    fail,
    language,
    print_json,
    progress_bar,
    say,
    show_rows,
    tell,
)
from kargah.assets.catalog import Entry, Problem, Reading, read_catalog, site_file_schema
from kargah.assets.catalog_rules import examine_rules, sentence
from kargah.ground.errors import KargahError
from kargah.ground.settings import Settings, load_settings
from kargah.hub.catalog_check import EntryReport, check_entries
from kargah.hub.endpoint import configured_endpoints
from kargah.hub.repo_info import PATIENCE
from kargah.text.messages import translate


def _told(key: str, /, **params: Any) -> str:
    return translate(f"catalogCheck.{key}", language(), **params)


def check(
    only: Annotated[list[str] | None, typer.Option("--only", metavar="ID", help=_told("help.only"))] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="SITE.toml", help=_told("help.file"))] = None,
    as_json: AsJson = False,
) -> None:
    """Check the catalog. Exit code 1 when something needs a person, 4 when no hub could be reached."""
    try:
        settings = load_settings()
        reading = read_catalog(file or settings.catalog)
        entries = [entry for entry in reading.catalog.entries if file is None or _origin(reading, entry) == str(file)]
        problems = [*reading.problems]
        for entry in entries:
            problems += examine_rules(entry, _origin(reading, entry))
        if only:
            _refuse_unknown(only, entries, problems)
            entries = [entry for entry in entries if {entry.id, entry.huggingface_id} & set(only)]
            problems = [problem for problem in problems if problem.entry in ("-", *only, *(e.id for e in entries))]
        reports = [] if settings.offline else _asked(entries, settings, quiet=as_json)
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    except KeyboardInterrupt:
        fail(_told("interrupted"), EXIT_INTERRUPTED)
    if as_json:
        print_json(_document(settings, reading, entries, problems, reports))
    else:
        _show(settings, entries, problems, reports)
    nobody = bool(reports) and all(report.endpoint_silent for report in reports)
    if nobody:
        tell(_told("nobody"), to_errors=True, style="red")
    if problems or (not nobody and _needs_a_person(reports)):
        raise typer.Exit(EXIT_FAILED)
    if nobody:
        raise typer.Exit(EXIT_UNREACHABLE)


def schema() -> None:
    """The JSON Schema of a site's catalog file."""
    print_json(site_file_schema())


def _origin(reading: Reading, entry: Entry) -> str:
    return reading.origins[entry.kind, entry.id]


def _refuse_unknown(only: Sequence[str], entries: Sequence[Entry], problems: Sequence[Problem]) -> None:
    known = {place for entry in entries for place in (entry.id, entry.huggingface_id)} | {p.entry for p in problems}
    for any_id in only:
        if any_id not in known:
            raise typer.BadParameter(_told("notInCatalog", id=any_id), param_hint="--only")


def _asked(entries: Sequence[Entry], settings: Settings, *, quiet: bool) -> list[EntryReport]:
    """Every report, in the order of the catalog and of the endpoints."""
    endpoints = configured_endpoints(settings)
    patience = replace(PATIENCE, allow_private_redirects=settings.allow_private_redirects)
    num_questions = sum(entry.source != "builtin" for entry in entries) * len(endpoints)
    closed_until: dict[str, float] = {}

    def waiting(endpoint: str, seconds: float) -> None:
        # Several questions meet the same refusal; it is said once.
        if not quiet and time.monotonic() >= closed_until.get(endpoint, 0.0):
            closed_until[endpoint] = time.monotonic() + seconds
            tell(_told("waiting", endpoint=endpoint, seconds=round(seconds)), to_errors=True)

    reports = []
    with progress_bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as bar:
        task = bar.add_task(_told("asking"), total=num_questions)
        for report in check_entries(entries, endpoints, threading.Event(), settings=patience, waits=waiting):
            reports.append(report)
            bar.advance(task)
    order = {(entry.kind, entry.id): number for number, entry in enumerate(entries)}
    urls = [endpoint.url for endpoint in endpoints]
    return sorted(reports, key=lambda r: (order[r.entry.kind, r.entry.id], urls.index(r.endpoint)))


def _needs_a_person(reports: Sequence[EntryReport]) -> bool:
    """Whether something serious was found, or an entry could be asked of no hub: one that answers is enough."""
    answered = {(r.entry.kind, r.entry.id) for r in reports if r.status != "unreachable"}
    return any(
        finding.serious and (finding.code != "unreachable" or (report.entry.kind, report.entry.id) not in answered)
        for report in reports
        for finding in report.findings
    )


def _show(
    settings: Settings, entries: Sequence[Entry], problems: Sequence[Problem], reports: Sequence[EntryReport]
) -> None:
    if problems:
        headings = [_told(f"column.{name}") for name in ("file", "entry", "field", "problem")]
        rows = [(p.file, p.entry, p.field, sentence(p, language())) for p in problems]
        show_rows(headings, rows, fold=[0, 3])
    if reports:
        several = len(settings.hub_endpoint) > 1
        headings = [say("column.id"), *([_told("column.endpoint")] if several else [])]
        show_rows(
            [*headings, say("column.status"), _told("column.found")],
            [
                (
                    report.entry.id,
                    *([report.endpoint] if several else []),
                    _told(f"status.{report.status}"),
                    "; ".join(finding.sentence(language()) for finding in report.findings),
                )
                for report in reports
            ],
            fold=[3 if several else 2],
        )
    tell(_told("formSummary", entries=len(entries), problems=len(problems)))
    if settings.offline:
        tell(_told("offline"))
    else:
        tell(_told("hubSummary", **_counts(reports)))


def _counts(reports: Sequence[EntryReport]) -> dict[str, int]:
    serious = [any(finding.serious for finding in report.findings) for report in reports]
    unreachable = sum(report.status == "unreachable" for report in reports)
    good = sum(report.status == "ok" for report in reports)
    return {
        "total": len(reports),
        "good": good,
        "noted": len(reports) - good - sum(serious),
        "bad": sum(serious) - unreachable,
        "unreachable": unreachable,
    }


def _document(
    settings: Settings,
    reading: Reading,
    entries: Sequence[Entry],
    problems: Sequence[Problem],
    reports: Sequence[EntryReport],
) -> dict[str, Any]:
    return {
        "offline": settings.offline,
        "endpoints": [] if settings.offline else list(settings.hub_endpoint),
        "problems": [
            {"file": p.file, "entry": p.entry, "field": p.field, "code": p.kind, "problem": sentence(p, language())}
            for p in problems
        ],
        "entries": [
            {
                "kind": report.entry.kind,
                "id": report.entry.id,
                "huggingfaceId": report.entry.repo_id,
                "file": _origin(reading, report.entry),
                "endpoint": report.endpoint,
                "status": report.status,
                "commit": report.commit,
                "findings": [
                    {"code": f.code, "serious": f.serious, "message": f.sentence(language()), "params": f.params}
                    for f in report.findings
                ],
            }
            for report in reports
        ],
        "summary": {"entries": len(entries), "problems": len(problems), **_counts(reports)},
    }
