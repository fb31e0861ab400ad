"""The program: `python -m kargah.compute.selftest [--device NAME --model FOLDER] [--quick] [--with-parent]`.

Prints one JSON object a line as it goes. Without a device: `machine` (versions, drivers, the devices found). With one:
`device` (what it is), then for each stage `stage` (it begins) and its results: `gemm` (one a precision), `bandwidth`,
`training`, `reload`, `repeat`, `agreement`, or `failed` (stage, error, detail); `finished` last. Exit code 0 unless the
device is not there (2) or the program itself broke (1).
"""

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m kargah.compute.selftest", description="Test what trains here.")
    parser.add_argument("--device", help="test this device (cpu, cuda:0, mps, xpu:0); without it, list them")
    parser.add_argument("--model", type=Path, help="folder of a small encoder with its tokenizer")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works, not how fast")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    arguments = parser.parse_args(argv)
    if arguments.device and (arguments.model is None or not arguments.model.is_dir()):
        parser.error("--device needs the folder of a model")
    if arguments.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if arguments.device == "cpu":
        # torch reads these when it is imported: a test of the processor shall not wake a GPU.
        os.environ.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    try:
        if not arguments.device:
            return _list_devices()
        return _test(arguments.device, arguments.model, quick=arguments.quick)
    except Exception as error:  # noqa: BLE001 - the outermost edge: its reader must learn of whatever it was
        traceback.print_exc()
        _tell(_failure("program", error))
        return 1


def _list_devices() -> int:
    from kargah.compute.selftest.devices import machine_facts

    _tell({"type": "machine", **machine_facts()})
    return 0


def _test(name: str, model: Path, *, quick: bool) -> int:
    begun = time.perf_counter()
    from kargah.compute.selftest import speed, training
    from kargah.compute.selftest.devices import device_facts, device_names, precisions

    if name not in device_names():
        print(f"there is no device {name}", file=sys.stderr)
        return 2
    device = speed.open_device(name)
    facts = device_facts(device)
    _tell({"type": "device", "name": name, **facts})
    budget = speed.QUICK if quick else speed.FULL
    for precision, reason in precisions(device).items():

        def products(precision: str = precision, reason: str | None = reason) -> list[Record]:
            return [speed.gemm(device, precision, reason, budget)]

        _stage(f"gemm {precision}", products)
    _stage("bandwidth", lambda: [speed.bandwidth(device, budget)])
    _stage("training", lambda: training.lessons(model, device, training.QUICK_STEPS if quick else training.STEPS))
    _tell({"type": "finished", "seconds": time.perf_counter() - begun})
    return 0


def _stage(name: str, results: Callable[[], Iterable[Record]]) -> None:
    """Tell the results of one stage as they come, or how it failed: the next one may still work."""
    _tell({"type": "stage", "stage": name})
    try:
        for result in results():
            _tell(result)
    except (RuntimeError, OSError, MemoryError, ValueError, TypeError, _training_failed()) as error:
        traceback.print_exc()
        _tell(_failure(name, error))


def _training_failed() -> type[Exception]:
    from kargah.compute.failures import TrainingFailed

    return TrainingFailed


def _failure(stage: str, error: Exception) -> Record:
    from kargah.compute.failures import exit_of

    ended = exit_of(error, 0)
    return {"type": "failed", "stage": stage, "error": ended.error, "detail": ended.detail}


def _tell(record: Record) -> None:
    print(json.dumps(record, ensure_ascii=False, allow_nan=False), flush=True)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
