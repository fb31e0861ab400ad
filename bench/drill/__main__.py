"""`python -m bench.drill [--kills N] [--seed S] [--runs K] [--home DIR] [--json FILE]`. Exit code 1 on a violation."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from bench.drill.battle import run_drill
from bench.drill.report import text_of, value_of, violations_of
from bench.server import ServerBroken


def main() -> int:
    """Drill, and write what was found to standard output. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.drill", description="Kill real runs at random moments.")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="kills of server, program, or both (100)")
    parser.add_argument("--seed", type=int, metavar="S", help="of every choice; by the clock without one")
    parser.add_argument("--runs", type=int, default=2, metavar="K", help="runs under way at once (2)")
    parser.add_argument("--home", type=Path, metavar="DIR", help="an empty data directory, which then stays")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every kill and every verdict there too")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else time.time_ns() % 1_000_000
    print(f"seed {seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="kargah-drill-", ignore_cleanup_errors=True) as name:
        home = asked.home.absolute() if asked.home is not None else Path(name) / "home"
        try:
            found = run_drill(home, num_kills=asked.kills, seed=seed, num_at_once=asked.runs, say=_say)
        except ServerBroken as broken:
            print(broken)
            return 1
    print(text_of(found))
    if asked.json is not None:
        asked.json.write_text(json.dumps(value_of(found), indent=1), encoding="utf-8")
    return 1 if violations_of(found) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
