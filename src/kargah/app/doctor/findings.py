"""What an examination gives: facts for the report, findings for people."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from kargah.text.languages import Language
from kargah.text.messages import translate

State = Literal["ok", "warning", "error"]
Facts = dict[str, Any]
"""camelCase names to JSON values. None means not measured; `unmeasured` holds the reason by name."""

Tell = Callable[[str, str], None]
"""Tells whoever waits what is being looked at now: a subject, and the name of one where there are several."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    subject: str
    state: State
    message: str


@dataclass(slots=True)
class Examination:
    """What one room found. Sentences are made in `language`."""

    language: Language
    facts: Facts = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def find(self, subject: str, state: State, key: str, **params: Any) -> None:
        """Add a finding: the sentence `doctor.<key>`."""
        self.findings.append(Finding(subject, state, translate(f"doctor.{key}", self.language, **params)))


def unmeasured(facts: Facts, name: str, reason: str) -> None:
    """Set a fact to None and keep the reason."""
    facts[name] = None
    facts.setdefault("unmeasured", {})[name] = reason
