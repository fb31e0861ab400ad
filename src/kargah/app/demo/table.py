"""The table at the end of the demo: every model measured on the test split by one program, two sentences tried."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kargah.app.demo.stage import DemoFailed
from kargah.runs.executor import child_environment
from kargah.text.sizes import human_size

SENTENCES = (
    "سفارشی که هفتهٔ پیش دادم هنوز نرسیده، الان کجاست؟",
    "لطفاً فاکتور رسمی با شناسهٔ ملی شرکت برای خرید دیروز صادر فرمایید",
)


def measure(checkpoints: dict[str, Path], dataset: Path, columns: str) -> dict[str, dict[str, Any]]:
    """Baselines and checkpoints on the test split, by name. Raises `DemoFailed`."""
    rows = _program("baselines", str(dataset), "--columns", columns)
    for name, folder in checkpoints.items():
        rows[name] = _program("evaluate", str(folder), str(dataset), "--columns", columns)
    return rows


def show(console: Console, rows: dict[str, dict[str, Any]], say: Any) -> None:
    """Print the table."""
    table = Table(title=say("demo.table"))
    for column in ("model", "accuracy", "macroF1", "size", "latency"):
        table.add_column(say(f"demo.{column}"), justify="left" if column == "model" else "right")
    for name, row in rows.items():
        table.add_row(
            say(f"demo.row.{name}"),
            f"{row['accuracy'] * 100:.1f} %",
            f"{row['macroF1'] * 100:.1f} %",
            human_size(row["sizeBytes"]) or "—",
            f"{row['latencyMs']:.2f} ms",
        )
    console.print(table)


def classify(checkpoint: Path) -> list[tuple[str, dict[str, Any]]]:
    """The two sentences and what a checkpoint says of them."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in SENTENCES)
    answers = _run("predict", [str(checkpoint)], lines).strip().splitlines()
    return list(zip(SENTENCES, map(json.loads, answers), strict=True))


def _program(name: str, *arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(_run(name, [*arguments, "--split", "test"]).strip().splitlines()[-1])
    if "error" in result:
        raise DemoFailed(f"{name}: {result}")
    return result


def _run(name: str, arguments: list[str], given: str | None = None) -> str:
    command = [sys.executable, "-m", f"kargah.compute.{name}", *arguments]
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, encoding="utf-8", env=child_environment(), check=False
    )
    if done.returncode != 0:
        raise DemoFailed(f"{name} ended with code {done.returncode}: {done.stderr[-500:]} {done.stdout[-300:]}")
    return done.stdout
