"""One run in full, and a list of runs, as `kargah status` and `kargah runs` show them."""

from typing import Any

from kargah.app.commands.console import number, out, say, short_id, show_fields, show_rows, show_table, tell

LAST_STEPS = 10
LAST_LINES = 10


def show_runs(rows: list[dict[str, Any]]) -> None:
    """Runs, one a line."""
    show_table(
        ("id", "name", "status", "step", "loss", "valLoss", "accuracy", "created"),
        [
            (
                short_id(row["runId"]),
                row["name"],
                say(f"status.{row['status']}"),
                _steps(row),
                _measured(row, "trainLoss"),
                _measured(row, "valLoss"),
                _measured(row, "accuracy"),
                row["createdAt"][:10],
            )
            for row in rows
        ],
        fold=("name",),
    )


def show_run(run: dict[str, Any]) -> None:
    """A run with its values, the last of its curve and of its log."""
    show_fields(_fields(run))
    config = {name: value for name, value in (run.get("config") or {}).items() if value is not None}
    if config:
        tell("")
        show_rows(None, [(name, _shown(value)) for name, value in sorted(config.items())], fold=[1])
    if run["history"]:
        tell("")
        show_table(("step", "epoch", "loss", "valLoss", "accuracy"), map(_point, run["history"][-LAST_STEPS:]))
    if run["logs"]:
        tell("")
    for line in run["logs"][-LAST_LINES:]:
        show_line(line)


def show_line(line: dict[str, Any]) -> None:
    """One line of a run's log: time (UTC), level, message."""
    style = {"warning": "yellow", "error": "red"}.get(line["level"]) if out.is_terminal else None
    tell(f"{line['timestamp']}  {line['level']:<7}  {line['message']}", style=style)


def _fields(run: dict[str, Any]) -> list[tuple[str, str | None]]:
    attempt, queue = run.get("attempt"), run.get("queue")
    epoch = None if run["epoch"] is None else f"{run['epoch']:.2f}"
    return [
        ("run", run["runId"]),
        ("job", run["jobId"]),
        ("name", run["name"]),
        ("status", say(f"status.{run['status']}")),
        ("error", f"{run['message']} [{run['error']}]" if run.get("error") else None),
        ("queue", queue["message"] if queue else None),
        ("task", run["task"]),
        ("base", run["baseModel"]),
        ("teacher", run["teacherModel"]),
        ("datasets", ", ".join(run["datasets"])),
        ("step", f"{_steps(run)} ({run['progress']}%)"),
        ("epoch", epoch),
        ("loss", _measured(run, "trainLoss")),
        ("valLoss", _measured(run, "valLoss")),
        ("accuracy", _measured(run, "accuracy")),
        ("throughput", None if run["throughput"] is None else f"{run['throughput']:.1f}"),
        ("bestCheckpoint", run["bestCheckpoint"]),
        ("lastCheckpoint", run["lastCheckpoint"]),
        ("attempt", _attempt(attempt) if attempt else None),
        ("created", run["createdAt"]),
        ("started", run["startedAt"]),
        ("finished", run["finishedAt"]),
    ]


def _attempt(attempt: dict[str, Any]) -> str:
    pid = f" · pid {attempt['pid']}" if attempt["pid"] else ""
    return f"{attempt['number']} · {attempt['host']}{pid} · {attempt['startedAt']}"


def _point(row: dict[str, Any]) -> tuple[str, ...]:
    epoch = "—" if row["epoch"] is None else f"{row['epoch']:.2f}"
    return str(row["step"]), epoch, *(_measured(row, name) for name in ("loss", "valLoss", "accuracy"))


def _measured(row: dict[str, Any], name: str) -> str:
    return number(row[name], (row.get("nonFinite") or {}).get(name))


def _steps(row: dict[str, Any]) -> str:
    return f"{row['step']}/{row['totalSteps'] or '—'}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_shown(one)}" for name, one in value.items() if one is not None)
    return str(value).lower() if isinstance(value, bool) else str(value)
