"""`python -m bench [NAME …] [--quick] [--json FILE]`: every measurement, or those named."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

NAMES = ("downloads", "checkpoint_stall", "runs")
"""Modules of this package with `measure(*, quick) -> Iterator[Table]`."""


def main() -> None:
    """Measure and write tables to standard output. Exit code 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Kargah with a peer beside it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without one")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer, for a first impression")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there too")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - set(NAMES))
    if unknown:
        parser.error(f"no such measurement: {', '.join(unknown)}")
    measured: dict[str, list[dict[str, Any]]] = {}
    for name in asked.names or NAMES:
        measured[name] = []
        for table in importlib.import_module(f"bench.{name}").measure(quick=asked.quick):
            print(table.text(), flush=True)
            measured[name].append(table.value())
    if asked.json is not None:
        asked.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    missed = [
        goal for tables in measured.values() for table in tables for goal in table["goals"] if not goal["reached"]
    ]
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
