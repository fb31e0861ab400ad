"""A block for the site's catalog file, made of what a hub says of a repository.

What the hub does not say, and what only a person can write, stands there as a comment: a block that nobody has gone
over is not accepted by the catalog. Everything that others wrote (card, reason) is quoted or stands behind `#`.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import tomlkit

from kargah.assets.catalog import Kind
from kargah.assets.catalog_rules import TASKS, is_language
from kargah.hub.catalog_check import download_bytes, file_findings
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import EndpointFailed
from kargah.hub.job import TransferSettings
from kargah.hub.repo_info import PATIENCE, UNREACHABLE, Hub, RepoInfo
from kargah.text.languages import Language
from kargah.text.messages import translate


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found out about a repository: `info`, or why there is none, as the code of a failure."""

    info: RepoInfo | None
    code: str | None = None


class Facts:
    """Looks repositories up at the first endpoint that knows them."""

    def __init__(self, endpoints: Sequence[Endpoint], settings: TransferSettings = PATIENCE) -> None:
        stop = threading.Event()
        self._hubs = [Hub(endpoint, settings, stop) for endpoint in endpoints]

    def look_up(self, kind: Kind, repo_id: str) -> Looked:
        """What the hubs say. Without endpoints (offline) nothing is asked."""
        code = None
        for hub in self._hubs:
            try:
                info = hub.info(kind, repo_id, with_blobs=True)
                if info.id != repo_id:
                    # The address it moved to may not repeat what was asked for.
                    info = hub.info(kind, info.id, with_blobs=True)
                return Looked(info)
            except EndpointFailed as failure:
                # That a repository is not there says more than that an endpoint is not.
                code = failure.code if code is None or code in UNREACHABLE else code
        return Looked(None, code)

    def close(self) -> None:
        """Close the connections."""
        for hub in self._hubs:
            hub.close()


def draft(kind: Kind, asked_id: str, looked: Looked, notes: Sequence[str], language: Language) -> str:
    """The block of one entry as TOML, ending in a newline; `notes` stand above it as comments."""
    info = looked.info
    comments = list(notes)
    if info is None:
        comments.append(translate(f"catalogCheck.draft.{looked.code or 'OFFLINE'}", language))
    else:
        comments += [finding.sentence(language) for finding in file_findings(kind, info)]
        if info.id != asked_id:
            comments.append(translate("catalogCheck.finding.moved", language, newId=info.id))
    lines = [f"# {line}" for comment in comments for line in _comment_lines(comment)]
    lines += [f"[[{kind}s]]", f"id = {_toml(asked_id)}", f"huggingfaceId = {_toml(info.id if info else asked_id)}"]
    lines.append(f"name = {_toml((info and info.name) or asked_id.rpartition('/')[2])}")
    lines += _facts(kind, info, language)
    for code in ("fa", "en"):
        lines.append(f'# description.{code} = ""  # {translate(f"catalogCheck.draft.description.{code}", language)}')
    if kind == "dataset":
        columns = translate("catalogCheck.draft.columns", language)
        lines.append(f'# columns = {{ text = "…", label = "…" }}  # {columns}')
    return "\n".join(lines) + "\n"


def _facts(kind: Kind, info: RepoInfo | None, language: Language) -> list[str]:
    tasks = [task for task in info.tasks if task in TASKS] if info else []
    languages = ["mul" if code == "multilingual" else code for code in info.languages] if info else []
    values: dict[str, object] = {
        "tasks": tasks or None,
        "languages": [code for code in dict.fromkeys(languages) if is_language(code)] or None,
        "licence": info.licences[0] if info and info.licences else None,
        "revision": info.commit if info else None,
        "sizeBytes": (download_bytes(kind, info) or None) if info else None,
    }
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    unknown = [name for name, value in values.items() if value is None]
    if unknown:
        names = ", ".join(unknown)
        lines.append(f"# {translate('catalogCheck.draft.unknown', language, fields=names)}")
    if info is not None:
        more = {"parameters": info.parameters, "architecture": info.architecture, "gated": info.gated or None}
        lines += [f"{name} = {_toml(value)}" for name, value in more.items() if value is not None]
    return lines


def _comment_lines(text: str) -> list[str]:
    """The lines of a text without what a TOML comment may not hold."""
    lines = ("".join(c for c in line if c == "\t" or (ord(c) >= 0x20 and ord(c) != 0x7F)) for line in text.splitlines())
    return [line for line in lines if line.strip()]


def _toml(value: object) -> str:
    return str(tomlkit.item(value).as_string())
