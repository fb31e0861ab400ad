"""Every device that torch finds, each tested by a program of its own, so that a crash there is a finding here.

The programs are `python -m kargah.compute.selftest`; this module knows what they print, and neither torch nor them.
"""

import signal
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from typing import Any

from kargah.app.doctor.findings import Examination, Facts, State, Tell, unmeasured
from kargah.app.doctor.programs import Ended, run_program
from kargah.runs.executor import child_environment, compute_installed
from kargah.text.languages import Language

PROGRAM = "kargah.compute.selftest"
LIST_SECONDS, DEVICE_SECONDS = 180.0, 300.0
"""A cold disk may take minutes to give torch; a device that works needs much less than this."""
REFERENCE = "cpu"
LOSS_TOLERANCE = 0.02
"""Losses of one training on two devices may differ so much: float32 rounds otherwise in another order."""
RELOAD_TOLERANCE = 1e-3
_FIELDS = ("training", "reload", "repeat", "bandwidth")


def examine_devices(language: Language, wanted: list[str], tell: Tell, *, quick: bool) -> Examination:
    """Test the wanted devices, or all. `wanted` holds names, or kinds such as `cuda` for every one of a kind."""
    found = Examination(language, {"isInstalled": compute_installed(), "devices": []})
    if not found.facts["isInstalled"]:
        found.find("compute", "error" if wanted else "warning", "compute.missing")
        return found
    tell("compute", "")
    listing = _run([], LIST_SECONDS)
    machine = next((record for record in listing.records if record["type"] == "machine"), None)
    if machine is None:
        found.facts["problem"] = _why(listing)
        found.find("compute", "error", "compute.broken", problem=found.facts["problem"])
        return found
    found.facts["machine"] = _without_type(machine)
    _tell_machine(found, machine)
    names = [name for name in machine["devices"] if not wanted or _is_wanted(name, wanted)]
    for asked in wanted:
        if not any(_is_wanted(name, [asked]) for name in machine["devices"]):
            found.find("device", "error", "device.absent", device=asked, devices=", ".join(machine["devices"]))
    for name in names:
        tell("device", name)
        facts = examine_device(name, quick=quick)
        found.facts["devices"].append(facts)
    _compare(found.facts["devices"])
    for facts in found.facts["devices"]:
        _tell_device(found, facts)
    return found


def examine_device(name: str, *, quick: bool) -> Facts:
    """Everything measured on one device, and how its program ended."""
    with resources.as_file(resources.files("kargah.assets").joinpath("builtin", "mini_fa")) as model:
        arguments = ["--device", name, "--model", str(model), *(["--quick"] if quick else [])]
        return facts_of(name, _run(arguments, DEVICE_SECONDS))


def facts_of(name: str, ended: Ended) -> Facts:
    """The facts in what a device's program printed, also when it did not come to its end."""
    facts: Facts = {"name": name}
    products: Facts = {}
    failures: list[Facts] = []
    stage = "start"
    is_finished = False
    for record in ended.records:
        kind, value = record.pop("type", None), record
        if kind == "device":
            facts |= {**value, "gemm": products}
        elif kind == "stage":
            stage = str(value["stage"])
        elif kind == "gemm":
            products[str(value.pop("precision"))] = value
        elif kind == "agreement":
            facts["steadyLosses"] = value["losses"]
        elif kind == "failed":
            failures.append(value)
        elif kind in _FIELDS:
            facts[kind] = value
        elif kind == "finished":
            facts["seconds"] = value["seconds"]
            is_finished = True
    if not is_finished and not any(failure["stage"] == "program" for failure in failures):
        failures.append({"stage": stage, "error": _code(ended), "detail": _why(ended)})
    return {**facts, "failures": failures}


def _run(arguments: list[str], limit_seconds: float) -> Ended:
    command = [sys.executable, "-m", PROGRAM, *arguments, "--with-parent"]
    try:
        # Its files lie where this process removes them: a program that crashed cannot.
        with tempfile.TemporaryDirectory(prefix="kargah-doctor-", ignore_cleanup_errors=True) as folder:
            environment = {**child_environment(), "TMPDIR": folder}
            return run_program(command, environment=environment, limit_seconds=limit_seconds)
    except OSError as error:
        return Ended(exit_code=1, last_words=error.strerror or type(error).__name__)


def _code(ended: Ended) -> str:
    if ended.is_timed_out:
        return "TIMED_OUT"
    return "CRASHED" if ended.exit_code < 0 else "ENDED_EARLY"


def _why(ended: Ended) -> str:
    """How a program ended, in a few English words, with the last line that it wrote."""
    if ended.is_timed_out:
        how = "no end within its time"
    elif ended.exit_code < 0:
        how = f"ended by {signal.Signals(-ended.exit_code).name}"
    else:
        how = f"exit code {ended.exit_code}"
    return f"{how}: {ended.last_words}" if ended.last_words else how


def _is_wanted(name: str, wanted: list[str]) -> bool:
    return any(name == asked or name.startswith(f"{asked}:") for asked in wanted)


def _without_type(record: dict[str, Any]) -> Facts:
    return {name: value for name, value in record.items() if name != "type"}


def _tell_machine(found: Examination, machine: dict[str, Any]) -> None:
    versions = machine["versions"]
    said = {name: versions[name] for name in ("torch", "transformers")}
    found.find("compute", "ok", "compute.ok", **said, device=machine["trainsOn"])
    if machine["gpuProblem"] is not None:
        found.find("compute", "warning", "compute.gpuUnused", problem=machine["gpuProblem"])
    kinds = {name.partition(":")[0] for name in machine["devices"]} - {"cpu", machine["trainsOn"].partition(":")[0]}
    if kinds:
        found.find("compute", "warning", "compute.notChosen", devices=", ".join(sorted(kinds)))


def _compare(devices: list[Facts]) -> None:
    """Put beside each device how far its losses without dropout are from the processor's."""
    reference = next((facts.get("steadyLosses") for facts in devices if facts["name"] == REFERENCE), None)
    for facts in devices:
        if facts["name"] == REFERENCE:
            continue
        losses = facts.get("steadyLosses")
        if not reference or not losses:
            unmeasured(facts, "lossesDifferFromCpu", "not both were trained")
        elif None in losses or None in reference:
            unmeasured(facts, "lossesDifferFromCpu", "a loss is not finite")
        else:
            facts["lossesDifferFromCpu"] = max(abs(a - b) for a, b in zip(losses, reference, strict=False))


def _tell_device(found: Examination, facts: Facts) -> None:
    name = facts["name"]

    def find(state: State, key: str, **params: Any) -> None:
        found.find("device", state, f"device.{key}", device=name, **params)

    for failure in facts["failures"]:
        # Training is what a device is for; a product that did not fit is not.
        is_fatal = failure["stage"] in ("training", "program", "start") or failure["error"] in ("CRASHED", "TIMED_OUT")
        find("error" if is_fatal else "warning", "failed", **failure)
    training = facts.get("training")
    if training is None:
        if not facts["failures"]:
            find("error", "untrained")
        return
    _tell_training(facts, training, find)
    wrong = [precision for precision, product in facts.get("gemm", {}).items() if product.get("isRight") is False]
    if wrong:
        find("error", "wrongProducts", precisions=", ".join(wrong))
    repeat = facts.get("repeat")
    if repeat is not None and not repeat["isIdentical"]:
        find("warning" if name == REFERENCE else "ok", "notRepeated", difference=_short(repeat["maxDifference"]))
    difference = facts.get("lossesDifferFromCpu")
    if difference is not None and difference > LOSS_TOLERANCE:
        find("warning", "disagrees", difference=_short(difference))


def _tell_training(facts: Facts, training: Facts, find: Callable[..., None]) -> None:
    if not training["isFinite"]:
        find("error", "notFinite")
    elif not training["falls"]:
        find("error", "notFalling", first=_short(training["firstLoss"]), last=_short(training["lastLoss"]))
    else:
        product = facts.get("gemm", {}).get("float32", {}).get("bestGflops")
        speed = f"{product:.0f} GFLOP/s" if product is not None else "—"
        step = f"{training['medianStepSeconds'] * 1000:.1f} ms"
        find("ok", "trains", model=facts.get("model") or "—", product=speed, step=step)
    reload = facts.get("reload")
    if reload is not None and not (reload["maxDifference"] is not None and reload["maxDifference"] <= RELOAD_TOLERANCE):
        find("error", "notReloaded", difference=_short(reload["maxDifference"]))


def _short(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.3g}"
