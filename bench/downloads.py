"""Downloads from a hub on loopback: throughput, a link that drops, a killed worker, many small files far away.

Every contestant is a whole process from start to end, with its imports and its questions to the hub. They take turns,
so that whatever else the machine does meets all of them. Kargah proves digests and brings bytes to the disk before it
says done; the peer does neither.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import huggingface_hub

from bench.clients import Outcome, empty, hub, kargah, largest_bytes, peer, run, shell
from bench.report import Goal, Row, Table, load_note

MIB = 1024 * 1024
DROP_BYTES = 8 * MIB
KILLED_AT = 0.6
LATENCY_SECONDS = 0.05
NUM_SMALL_FILES = 200
SMALL_FILE_BYTES = 100_000

KARGAH = "Kargah, digest on the way, on the disk at the end"
PEER = f"huggingface_hub {huggingface_hub.__version__}, no digest"
TEE = "curl piped through tee into sha256sum"
AFTER = "curl, then sha256sum"
_ONE = ("model", "bench/one")
_MANY = ("dataset", "bench/many")
_FILE = "model.safetensors"

Command = Callable[[str, Path], list[str]]
"""From the hub's address and a folder to a command."""


def measure(*, quick: bool) -> Iterator[Table]:
    """All parts, in a folder that is removed. About 1 minute when `quick`, else 5 to 10."""
    size_bytes = (100 if quick else 1024) * MIB
    repeats = 3 if quick else 5
    with tempfile.TemporaryDirectory(prefix="kargah-bench-") as name:
        root, place = Path(name, "hub"), Path(name, "clients")
        _make_repositories(root, size_bytes)
        yield _bounds(place, size_bytes, repeats)
        yield _one_large_file(root, place, size_bytes, repeats, quick=quick)
        yield _dropping_link(root, place, size_bytes, 1 if quick else 3)
        yield _killed(root, place, size_bytes, 1 if quick else 3)
        yield _many_small_files(root, place, repeats)


def _make_repositories(root: Path, size_bytes: int) -> None:
    one = root / "models" / _ONE[1]
    one.mkdir(parents=True)
    (one / "config.json").write_text('{"model_type": "bert"}')
    with open(one / _FILE, "wb") as output:
        for _ in range(size_bytes // MIB):
            output.write(os.urandom(MIB))
    many = root / "datasets" / _MANY[1] / "data"
    many.mkdir(parents=True)
    for number in range(NUM_SMALL_FILES):
        (many / f"{number:04}.jsonl").write_bytes(os.urandom(SMALL_FILE_BYTES))


def _bounds(place: Path, size_bytes: int, repeats: int) -> Table:
    """What this machine does at most, one thing at a time."""
    table = Table(f"Bounds, {size_bytes // MIB} MiB each", {"speed": "{:.0f} MB/s"})
    load = os.getloadavg()
    block = memoryview(bytearray(os.urandom(MIB)))
    target = bytearray(MIB)
    num_blocks = size_bytes // MIB

    def copy() -> None:
        for _ in range(num_blocks):
            target[:] = block

    def digest() -> None:
        running = hashlib.sha256()
        for _ in range(num_blocks):
            running.update(block)

    def store(*, flushed: bool) -> None:
        with open(place / "file", "wb", buffering=0) as output:
            for _ in range(num_blocks):
                output.write(block)
            if flushed:
                os.fsync(output.fileno())

    bounds: dict[str, Callable[[], None]] = {
        "copying memory": copy,
        "sha256 of this Python (OpenSSL)": digest,
        "writing a file": lambda: store(flushed=False),
        "writing a file and fsync": lambda: store(flushed=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in bounds}
    for _ in range(repeats):
        for name, work in bounds.items():
            with empty(place):
                began_at = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - began_at)
    table.rows = [Row(name, {"speed": [size_bytes / 1e6 / one for one in found]}) for name, found in seconds.items()]
    table.notes.append(load_note(load))
    return table


def _one_large_file(root: Path, place: Path, size_bytes: int, repeats: int, *, quick: bool) -> Table:
    contestants: dict[str, Command] = {
        KARGAH: lambda url, folder: kargah(url, *_ONE, folder),
        PEER: lambda url, folder: peer(url, *_ONE, folder),
        TEE: _curl("curl -sf URL | tee FILE | sha256sum"),
        AFTER: _curl("curl -sf -o FILE URL && sha256sum FILE"),
        "curl, no digest": _curl("curl -sf -o FILE URL"),
        "curl, no digest, then sync": _curl("curl -sf -o FILE URL && sync FILE"),
    }
    if shutil.which("openssl"):
        contestants |= {
            "curl, then openssl dgst": _curl("curl -sf -o FILE URL && openssl dgst -sha256 FILE"),
            "curl, then openssl dgst, then sync": _curl(
                "curl -sf -o FILE URL && openssl dgst -sha256 FILE && sync FILE"
            ),
        }
    table = Table(
        f"One file of {size_bytes // MIB} MiB",
        {"time": "{:.2f} s", "speed": "{:.0f} MB/s", "cpu": "{:.2f} s", "Kargah is faster by": "{:.2f}"},
    )
    load = os.getloadavg()
    with hub(root) as source:
        found = _take_turns(contestants, source.url, place, repeats)
    ours = [outcome.seconds for outcome in found[KARGAH]]
    for name, outcomes in found.items():
        times = [outcome.seconds for outcome in outcomes]
        table.rows.append(
            Row(
                name,
                {
                    "time": times,
                    "speed": [size_bytes / 1e6 / one for one in times],
                    "cpu": [outcome.cpu_seconds for outcome in outcomes],
                    # Of one round each: neighbours in time met the same load.
                    "Kargah is faster by": [theirs / mine for mine, theirs in zip(ours, times, strict=True)],
                },
            )
        )
    table.notes = ["the hub sends by sendfile from a process of its own", load_note(load)]
    if quick:
        table.notes.append("no goals here: at this size the start of the processes is most of the time")
        return table
    faster = {name: table.row(name).median("Kargah is faster by") for name in (PEER, TEE, AFTER)}
    table.goals = [
        Goal("speed against the peer", faster[PEER], 2.0),
        Goal("speed against curl through tee into sha256sum", faster[TEE], 0.8),
        Goal("speed against curl, then sha256sum", faster[AFTER], 0.8),
    ]
    return table


def _dropping_link(root: Path, place: Path, size_bytes: int, repeats: int) -> Table:
    table = Table(
        f"A link that drops after every {DROP_BYTES // MIB} MiB, {size_bytes // MIB} MiB",
        {"bytes fetched / size": "{:.4f}", "completed": "{:.0f}", "requests": "{:.0f}", "time": "{:.1f} s"},
    )
    for name, command, times in ((KARGAH, kargah, repeats), (PEER, peer, 1)):
        values: dict[str, list[float]] = {column: [] for column in table.units}
        for _ in range(times):
            with hub(root, drop_after_bytes=DROP_BYTES) as source, empty(place) as folder:
                outcome = run(command(source.url, *_ONE, folder), folder)
                num_bytes, num_requests = source.sent()
            found = (num_bytes / size_bytes, outcome.code == 0, num_requests, outcome.seconds)
            for column, value in zip(values, found, strict=True):
                values[column].append(float(value))
        table.rows.append(Row(name, values))
    ours = table.row(KARGAH).values
    table.goals = [
        Goal("completed, every time", min(ours["completed"]), 1.0),
        Goal("bytes fetched / size, the worst", max(ours["bytes fetched / size"]), 1.01, at_most=True),
    ]
    return table


def _killed(root: Path, place: Path, size_bytes: int, repeats: int) -> Table:
    table = Table(
        f"Killed with -9 at {KILLED_AT:.0%}, then again, {size_bytes // MIB} MiB",
        {"second try: bytes fetched / size": "{:.4f}", "completed": "{:.0f}", "was killed at": "{:.3f}"},
    )

    def far_enough() -> bool:
        return largest_bytes(place) >= KILLED_AT * size_bytes

    for name, command in ((KARGAH, kargah), (PEER, peer)):
        values: dict[str, list[float]] = {column: [] for column in table.units}
        for _ in range(repeats):
            with empty(place) as folder:
                # Slow enough to be killed at the right moment.
                with hub(root, bytes_per_second=size_bytes // 4) as source:
                    run(command(source.url, *_ONE, folder), folder, until=far_enough)
                killed_at = largest_bytes(folder)
                # Another hub counts: the first may still have sent to the dead.
                with hub(root) as source:
                    outcome = run(command(source.url, *_ONE, folder), folder)
                    num_bytes, _ = source.sent()
            for column, value in zip(
                values, (num_bytes / size_bytes, outcome.code == 0, killed_at / size_bytes), strict=True
            ):
                values[column].append(float(value))
        table.rows.append(Row(name, values))
    ours = table.row(KARGAH).values
    table.goals = [
        Goal("completed, every time", min(ours["completed"]), 1.0),
        Goal("second try, the worst", max(ours["second try: bytes fetched / size"]), 0.42, at_most=True),
    ]
    return table


def _many_small_files(root: Path, place: Path, repeats: int) -> Table:
    contestants: dict[str, Command] = {
        KARGAH: lambda url, folder: kargah(url, *_MANY, folder),
        PEER: lambda url, folder: peer(url, *_MANY, folder),
    }
    table = Table(
        f"{NUM_SMALL_FILES} files of {SMALL_FILE_BYTES // 1000} KB, each answer after {LATENCY_SECONDS * 1000:.0f} ms",
        {"time": "{:.2f} s", "cpu": "{:.2f} s", "requests": "{:.0f}", "Kargah is faster by": "{:.2f}"},
    )
    load = os.getloadavg()
    requests: dict[str, list[float]] = {name: [] for name in contestants}
    with hub(root, latency_seconds=LATENCY_SECONDS) as source:

        @contextmanager
        def counted(name: str) -> Iterator[None]:
            _, before = source.sent()
            yield
            requests[name].append(source.sent()[1] - before)

        found = _take_turns(contestants, source.url, place, repeats, around=counted)
    ours = [outcome.seconds for outcome in found[KARGAH]]
    for name, outcomes in found.items():
        times = [outcome.seconds for outcome in outcomes]
        table.rows.append(
            Row(
                name,
                {
                    "time": times,
                    "cpu": [outcome.cpu_seconds for outcome in outcomes],
                    "requests": requests[name],
                    "Kargah is faster by": [theirs / mine for mine, theirs in zip(ours, times, strict=True)],
                },
            )
        )
    table.goals = [Goal("speed against the peer", table.row(PEER).median("Kargah is faster by"), 1.5)]
    table.notes = [load_note(load)]
    return table


def _curl(line: str) -> Command:
    return lambda url, folder: shell(line, f"{url}/{_ONE[1]}/resolve/main/{_FILE}", folder)


def _take_turns(
    contestants: dict[str, Command],
    url: str,
    place: Path,
    repeats: int,
    *,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, command in contestants.items():
            with empty(place) as folder:
                with around(name):
                    outcome = run(command(url, folder), folder)
                if outcome.code != 0:
                    raise RuntimeError(f"{name} ended with {outcome.code}")
                found[name].append(outcome)
    return found
