"""The journal of an attempt: append-only JSON lines, written by the training program, read by whoever wants to know.

Every line is one past-tense fact `{"seq": n, "at": "2026-01-01T00:00:00.000Z", "type": …, …}` with `seq` growing by one
from 1. Types and their fields (steps count optimiser steps, losses are means over the logging window):

- `started`: attempt, pid, host, startStep, totalSteps, numTrainRows, numValidationRows, labels, device, numThreads,
  numParameters, numTrainableParameters (fewer with adapters), versions
- `metric`: step, epoch, loss, learningRate, throughput (samples per second), gradNorm
- `evaluation`: step, epoch, valLoss, accuracy, metrics (a dict of further ones)
- `log`: level (`info`, `warning`, `error`), message, key, details. The message is the sentence `log.<key>` in English,
  filled with the details; with them a reader tells it in another language. The key `failed` is that of the error an
  attempt ends with: details name it (`error`, `detail`, its parameters), and the message is its detail
- `checkpoint`: step, epoch, name, sizeBytes, metrics, best
- `checkpointRemoved`: name, step
- `finished`: status (`completed`, `stopped`, `paused`, `failed`), step, error, details (with `peakMemoryBytes`, and on
  a GPU `peakGpuMemoryBytes`)

A float that is NaN or infinite is null and named in `nonFinite` (`{"loss": "NaN"}`), for JSON has no such number.
An incomplete last line is not there yet. The writer fsyncs at least once a second and with every checkpoint.
"""

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FSYNC_EVERY_SECONDS = 1.0
READ_AT_MOST_BYTES = 4 * 1024 * 1024

FAILED_LINE = "failed"
"""Key of the log line whose sentence is that of an error."""

Record = dict[str, Any]


class JournalWriter:
    """Appends facts to a journal. Safe to call from several threads of one process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the attempt
        self._guard = threading.Lock()
        self._seq = 0
        self._synced_at = time.monotonic()
        self._closed = threading.Event()
        self._dirty = False
        threading.Thread(target=self._sync_behind, name="journal-fsync", daemon=True).start()

    def append(self, type: str, *, durable: bool = False, **fields: Any) -> None:
        """Append one fact; with `durable` it is on disk when this returns. Raises `OSError` (a full disk)."""
        with self._guard:
            self._seq += 1
            record: Record = {"seq": self._seq, "at": utc_now(), "type": type, **finite(fields)}
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
            self._write_whole(line.encode("utf-8"))
            self._dirty = True
            if durable:
                self._sync()

    def close(self) -> None:
        """Sync and close; nothing can be appended afterwards."""
        self._closed.set()
        with self._guard:
            self._sync()
            self._file.close()

    def _write_whole(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _sync(self) -> None:
        if self._dirty:
            os.fsync(self._file.fileno())
            self._dirty = False

    def _sync_behind(self) -> None:
        while not self._closed.wait(FSYNC_EVERY_SECONDS):
            with self._guard:
                if not self._file.closed:
                    self._sync()


@dataclass(frozen=True, slots=True)
class JournalPart:
    """Complete records read from a journal, and the byte offset behind the last of them."""

    records: list[Record]
    offset: int


def read_journal(path: Path, offset: int = 0, limit_bytes: int = READ_AT_MOST_BYTES) -> JournalPart:
    """Read complete lines from byte `offset` on, about `limit_bytes` at most.

    No file, or an offset at or beyond its end (a crash of the machine can shorten it), reads as nothing new.
    Raises `ValueError` for a complete line that is not JSON.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(limit_bytes)
            while data and b"\n" not in data:
                more = file.read(limit_bytes)
                if not more:
                    break
                data += more
    except FileNotFoundError:
        return JournalPart([], offset)
    complete = data[: data.rfind(b"\n") + 1]
    records = [json.loads(line) for line in complete.split(b"\n") if line.strip(b"\0 ")]
    return JournalPart(records, offset + len(complete))


def finite(fields: Mapping[str, Any]) -> Record:
    """`fields` with every NaN or infinite float replaced by None and named under `nonFinite`."""
    record: Record = {}
    odd: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            record[name] = None
            odd[name] = "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
        elif isinstance(value, dict):
            inner = finite(value)
            odd.update({f"{name}.{key}": text for key, text in inner.pop("nonFinite", {}).items()})
            record[name] = inner
        else:
            record[name] = value
    if odd:
        record["nonFinite"] = {**record.get("nonFinite", {}), **odd}
    return record


def utc_now() -> str:
    """The time now as RFC 3339 in UTC with milliseconds and `Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
