"""`kargah catalog requests --toml`: requests as blocks for a site's catalog file."""

from dataclasses import replace
from typing import Any

import typer

from kargah.app.commands.console import language
from kargah.ground.settings import load_settings
from kargah.hub.catalog_draft import Facts, draft
from kargah.hub.endpoint import configured_endpoints
from kargah.hub.repo_info import PATIENCE
from kargah.text.messages import translate


def print_drafts(asked: list[dict[str, Any]]) -> None:
    """A block for the site's catalog file for each request, with what the hubs say of it."""
    settings = load_settings()
    facts = Facts(
        [] if settings.offline else configured_endpoints(settings),
        replace(PATIENCE, allow_private_redirects=settings.allow_private_redirects),
    )
    try:
        for number, one in enumerate(asked):
            told = {"date": one["createdAt"][:10], "num": one["numAsked"], "requestId": one["requestId"]}
            note = translate("approvals.toml.asked", language(), **told)
            looked = facts.look_up(one["kind"], one["id"])
            notes = [note, *([one["reason"]] if one["reason"] else [])]
            block = draft(one["kind"], one["id"], looked, notes, language())
            typer.echo(("\n" if number else "") + block, nl=False)
    finally:
        facts.close()
