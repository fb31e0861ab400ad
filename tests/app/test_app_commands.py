"""The command `kargah` by child processes: two languages, JSON for programs, exit codes, and a stream of everything."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from living import BERT, NOBODY, Living, MakeLiving, Told, told

from kargah import __version__


@pytest.fixture(scope="module")
def opinions(live: Living, tiny: Path) -> str:
    return live.upload(tiny / "opinions", "نظرهای خط فرمان")


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_version() -> None:
    assert Living(Path("/nowhere")).run("--version").stdout.strip() == __version__


def test_the_catalog_in_two_languages_and_as_json(live: Living) -> None:
    listed = json.loads(live.run("catalog", "--json").stdout)
    assert {"id", "name", "kind", "size", "status"} <= set(listed[0])
    assert BERT in [entry["id"] for entry in listed]
    datasets = json.loads(live.run("catalog", "datasets", "--search", "site/opinions", "--json").stdout)
    assert [entry["id"] for entry in datasets] == ["site/opinions"]
    english, persian = live.run("catalog", "-q", "site/evil"), live.run("catalog", "-q", "site/evil", lang="fa")
    assert "weights that run a command" in _plain(english.stdout)
    assert "مدلی با وزن‌های ناامن" in _plain(persian.stdout)
    assert live.run("catalog", "songs").returncode == 2


def test_the_doctor_examines_without_and_with_a_server(live: Living, make_living: MakeLiving) -> None:
    done = live.run("doctor", "--json")
    findings = _findings(done.stdout)
    assert done.returncode == 0
    assert {"python", "sqlite", "compute", "memory", "settings", "disk", "catalog", "server", "hub"} <= set(findings)
    assert findings["server"]["state"] == "ok"
    assert findings["hub"]["state"] == "ok"
    assert live.url in findings["server"]["message"]
    alone = make_living("alone", start=False, hub_endpoint=NOBODY)
    findings = _findings(alone.run("doctor", "--json", lang="fa").stdout)
    assert findings["server"]["state"] == findings["hub"]["state"] == "warning"
    assert re.search("[آ-ی]", findings["server"]["message"])
    broken = make_living("broken", start=False, local_runs="many").run("doctor", "--json")
    assert broken.returncode == 1
    assert "KARGAH_LOCAL_RUNS" in broken.stdout


def _findings(text: str) -> dict[str, dict[str, str]]:
    said = json.loads(text)
    assert said["version"] == __version__
    return {finding["subject"]: finding for finding in said["findings"]}


def test_no_server_is_exit_code_4(make_living: MakeLiving) -> None:
    nobody = make_living("nobody", start=False)
    for arguments in (("catalog",), ("runs",), ("download", BERT), ("train", "--base", BERT, "--dataset", "x")):
        done = nobody.run(*arguments)
        assert done.returncode == 4, done.stderr
        assert nobody.url in done.stderr
        assert "Traceback" not in done.stderr
    english, persian = nobody.run("runs"), nobody.run("runs", lang="fa")
    assert "kargah serve" in english.stderr
    assert english.stderr != persian.stderr


def test_what_the_server_refuses_is_exit_code_3(live: Living) -> None:
    for arguments, code in (
        (("download", "evil/model"), "MODEL_NOT_ALLOWED"),
        (("download", "evil/data", "--dataset"), "DATASET_NOT_ALLOWED"),
        (("runs", "show", "a" * 32), "RUN_NOT_FOUND"),
        (("runs", "stop", "a" * 32), "RUN_NOT_FOUND"),
        (("train", "--base", BERT, "--dataset", "evil/data", "--set", "epoch=3"), "VALIDATION_FAILED"),
    ):
        done = live.run(*arguments)
        assert done.returncode == 3, done.stderr
        assert f"[{code}]" in done.stderr
        assert done.stdout == ""
    assert "config.epoch" in _plain(done.stderr)
    refused = live.run("download", "evil/model", lang="fa")
    assert "کاتالوگ" in refused.stderr
    assert live.run("train", "--base", BERT).returncode == 2


def test_download_shows_its_end_and_knows_what_is_here(live: Living) -> None:
    assert live.run("download", BERT).returncode == 0
    again = live.run("download", BERT, lang="fa")
    assert again.returncode == 0
    assert BERT in again.stdout
    held = json.loads(live.run("download", BERT, "--json").stdout)
    assert (held["status"], held["progress"]) == ("ready", 100)
    arrived = live.run("download", "site/opinions", "--dataset", "--json")
    assert json.loads(arrived.stdout)["status"] in ("done", "ready")
    absent = live.run("download", "site/absent")
    assert absent.returncode == 1
    assert "[REPO_NOT_FOUND]" in absent.stderr
    last = json.loads(live.run("download", "site/absent", "--json").stdout)
    assert (last["status"], last["error"]) == ("error", "REPO_NOT_FOUND")


def test_train_waits_for_the_end_and_runs_show_it(live: Living, opinions: str) -> None:
    assert live.run("download", BERT).returncode == 0
    heard: list[Told] = []

    def listen() -> None:
        with live.open_stream("/api/events", topics="runs,assets") as answer:
            for event in told(answer.iter_lines()):
                heard.append(event)
                if event.data.get("final"):
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    sets = ("maxSteps=12", "batchSize=8", "logEverySteps=4", "maxLength=24", "learningRate=0.003", "optimizer=adamw")
    arguments = [part for pair in sets for part in ("--set", pair)]
    done = live.run("train", "--base", BERT, "--dataset", opinions, "--name", "از خط فرمان", *arguments, lang="fa")
    assert done.returncode == 0, done.stderr
    listener.join()
    assert re.search("درستی \u2068[۰-۱]٫[۰-۹]{4}\u2069", done.stdout)

    (row,) = json.loads(live.run("runs", "-q", "خط فرمان", "--json").stdout)
    assert (row["status"], row["name"], row["step"]) == ("completed", "از خط فرمان", 12)
    assert row["runId"] in done.stdout
    shown = json.loads(live.run("runs", "show", row["jobId"], "--json").stdout)
    assert [entry["step"] for entry in shown["history"] if entry["loss"] is not None] == [4, 8, 12]
    assert "از خط فرمان" in live.run("runs", "show", row["runId"]).stdout
    assert row["runId"] in _joined(live.run("runs").stdout)
    assert live.run("runs", "stop", row["runId"]).returncode == 3

    _heard_everything(heard, row["runId"])


def _joined(text: str) -> str:
    return "".join(line.split(" ")[0] for line in text.splitlines())


def _heard_everything(heard: list[Told], run_id: str) -> None:
    """The stream of everything told of the run and of its checkpoints, each with its topic."""
    assert heard[0].data["type"] == "hello"
    of_run = [event.data for event in heard if event.data.get("runId") == run_id]
    assert {event["type"] for event in of_run} >= {"state", "metric", "log", "checkpoint"}
    assert {event["topic"] for event in of_run} == {"runs"}
    assets: list[dict[str, Any]] = [event.data for event in heard if event.data["topic"] == "assets"]
    assert any(event["kind"] == "checkpoint" and event["status"] == "ready" for event in assets)
    ids = [int(event.id) for event in heard if event.id is not None]
    assert ids == sorted(ids)


def test_a_spec_that_cannot_be_read_is_used_wrongly(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"runId": 7}', encoding="utf-8")
    done = Living(tmp_path / "home").run("train", str(spec))
    assert done.returncode == 2
    assert "spec.runId" in _plain(done.stderr)
    assert Living(tmp_path / "home").run("train", str(tmp_path / "missing.json")).returncode == 2
