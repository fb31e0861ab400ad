"""What a measurement hands back: rows of repeated values, and goals held against them."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant: its measured columns, each with every repetition."""

    name: str
    values: dict[str, list[float]]

    def median(self, column: str) -> float:
        return statistics.median(self.values[column])


@dataclass(frozen=True, slots=True)
class Goal:
    """A number that is wanted: `found` against `wanted`, the right side of it."""

    text: str
    found: float
    wanted: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


@dataclass(slots=True)
class Table:
    """Rows under a title. `units` maps each column to how it is written, such as `{:.0f} MB/s`."""

    title: str
    units: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def text(self) -> str:
        """As Markdown: the median, and the least and greatest in brackets."""
        lines = [f"## {self.title}", "", f"| | {' | '.join(self.units)} |", "| --- " * (len(self.units) + 1) + "|"]
        for row in self.rows:
            cells = (_cell(row.values.get(column, []), unit) for column, unit in self.units.items())
            lines.append(f"| {row.name} | {' | '.join(cells)} |")
        lines.append("")
        for goal in self.goals:
            sign = "≤" if goal.at_most else "≥"
            verdict = "reached" if goal.reached else "NOT reached"
            lines.append(f"- {goal.text}: {goal.found:.3g} (wanted {sign} {goal.wanted:g}): {verdict}")
        return "\n".join([*lines, *(f"- {note}" for note in self.notes), ""])

    def value(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "title": self.title,
            "rows": {row.name: row.values for row in self.rows},
            "goals": [
                {"text": goal.text, "found": goal.found, "wanted": goal.wanted, "reached": goal.reached}
                for goal in self.goals
            ],
            "notes": self.notes,
        }


def load_note(before: Sequence[float]) -> str:
    """What else the machine had to do: the load at the beginning and now."""
    return f"load of the last minute {before[0]:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end"


def _cell(values: list[float], unit: str) -> str:
    if not values:
        return "–"
    median = unit.format(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({min(values):.3g}–{max(values):.3g})"
