"""A drill as a table for people and as JSON."""

import dataclasses
from collections import Counter
from typing import Any

from bench.drill.battle import Found
from bench.drill.blows import Target

_COLUMNS = (
    "run",
    "recipe",
    "ended as",
    "kills",
    "attempts",
    "steps",
    "trained again",
    "lost",
    "doubled",
    "checkpoints",
    "events seen",
    "dead but running",
    "violations",
)


def violations_of(found: Found) -> list[str]:
    """Everything that did not hold, a sentence each."""
    ofs = [f"run {v.run_id[:8]} ({v.recipe}): {text}" for v in found.verdicts for text in v.violations]
    return [*ofs, *found.violations]


def text_of(found: Found) -> str:
    """As Markdown."""
    killed = Counter(blow.target for blow in found.blows)
    unready = sum(not blow.server_was_ready for blow in found.blows if blow.target is not Target.PROGRAM)
    counts = ", ".join(f"{killed[target]} of the {name}" for target, name in _NAMES.items())
    lines = [
        f"## {len(found.blows)} kills in {found.seconds:.0f} s, seed {found.seed}",
        "",
        f"- kills: {counts}; {unready} of them before the server was ready again",
        *(f"- {count} × {text}" for text, count in Counter(found.interludes).items()),
    ]
    if found.server_ends_seconds:
        lines.append(f"- the server ended within {max(found.server_ends_seconds):.1f} s of SIGTERM")
    lines += ["", f"| {' | '.join(_COLUMNS)} |", "| --- " * len(_COLUMNS) + "|"]
    for v in found.verdicts:
        cells: tuple[Any, ...] = (
            v.run_id[:8],
            v.recipe,
            v.status,
            v.num_kills,
            v.num_attempts,
            v.num_steps,
            v.num_trained_again,
            v.num_lost,
            v.num_doubled,
            v.num_checkpoints,
            v.num_events,
            f"{v.longest_dead_seconds:.1f} s",
            len(v.violations),
        )
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    violations = violations_of(found)
    again, steps = (sum(getattr(v, name) for v in found.verdicts) for name in ("num_trained_again", "num_steps"))
    lines += [
        "",
        f"- {steps} steps stand in the database, {again} were trained again from a checkpoint",
        f"- lost {sum(v.num_lost for v in found.verdicts)}, doubled {sum(v.num_doubled for v in found.verdicts)}, "
        f"zombies {len(found.zombies)}, orphans {len(found.orphans)}",
        f"- shown running with nothing alive behind it, the longest: "
        f"{max((v.longest_dead_seconds for v in found.verdicts), default=0.0):.1f} s ({found.num_looks} looks)",
        f"- violations: {len(violations) or 'none'}",
        *(f"  - {text}" for text in violations),
    ]
    return "\n".join(lines)


def value_of(found: Found) -> dict[str, Any]:
    """As JSON values, every single kill among them."""
    return {**dataclasses.asdict(found), "allViolations": violations_of(found)}


_NAMES = {Target.SERVER: "server", Target.PROGRAM: "training program", Target.BOTH: "both at once"}
