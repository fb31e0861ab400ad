"""The command in a terminal and in a pipe: colours, languages, encodings, readers that leave, signals, Tab."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from living import BERT, PATIENCE_SECONDS, Living, MakeLiving

FSI, PDI = "\u2068", "\u2069"
QUESTION = "[بله/نه]"
KARGAH = str(Path(sys.executable).with_name("kargah"))
"""The command as it is installed, for the shell completes it by its name."""
RETYPE_SECONDS = 10.0
ESCAPE = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, site_catalog: Path, model_hub: str) -> Iterator[Living]:
    """A server of these tests alone: what they look at is all that it holds."""
    living = Living(
        tmp_path_factory.mktemp("terminal") / "خانه", catalog=str(site_catalog), hub_endpoint=model_hub, local_runs="1"
    )
    living.start()
    yield living
    living.close()


@pytest.fixture(scope="module")
def held(live: Living, tiny: Path) -> str:
    """A data set with a Persian name. Its id."""
    live.fetch(BERT)
    return live.upload(tiny / "opinions", "نظرهای پایانه‌ها")


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kargah.app.cli", *arguments]


def _in_terminal(living: Living, *arguments: str, answer: str = "", **environment: str) -> tuple[int, str]:
    """The exit code and everything a terminal of 80 columns shows; `answer` is typed when there is a question."""
    ours, theirs = pty.openpty()
    surroundings = {**living.environment, "KARGAH_LANG": "fa", "TERM": "xterm", "COLUMNS": "80", **environment}
    process = subprocess.Popen(
        _command(*arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=surroundings,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that a typed Ctrl-C is a signal
    )
    os.close(theirs)
    shown, asked = b"", False
    while True:
        # What is typed between a question and the reading of its answer can be lost; a person types it again.
        if asked and not select.select([ours], [], [], RETYPE_SECONDS)[0]:
            os.write(ours, answer.encode())
            continue
        part = _read(ours)
        if not part:
            break
        shown += part
        if answer and not asked and QUESTION.encode() in shown:
            os.write(ours, answer.encode())
            asked = True
    os.close(ours)
    return process.wait(PATIENCE_SECONDS), shown.decode("utf-8")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the last program on the other side is gone
        return b""


def test_a_terminal_gets_colours_and_isolates_a_pipe_plain_lines(live: Living, held: str) -> None:
    code, shown = _in_terminal(live, "data")
    assert code == 0
    assert "\x1b[" in shown
    assert f"{FSI}نظرهای پایانه‌ها{PDI}" in shown
    assert held[:8] in shown
    assert held not in shown
    piped = live.run("data", lang="fa").stdout
    assert held in piped
    assert not re.search(f"[\x1b{FSI}{PDI}]", piped)
    as_json = live.run("data", "--json", lang="fa").stdout
    assert "نظرهای پایانه‌ها" in as_json
    assert not re.search(f"[\x1b{FSI}{PDI}]", as_json)


def test_columns_stand_below_each_other_also_with_letters_that_have_no_width(live: Living, held: str) -> None:
    _, shown = _in_terminal(live, "data", KARGAH_LANG="en", COLUMNS="200")
    lines = [re.sub("[\u200c\u2067-\u2069]", "", ESCAPE.sub("", line)) for line in shown.splitlines()]
    at = lines[0].index("status")
    assert {line[at - 2 : at] for line in lines} == {"  "}
    assert {line[at:].split()[0] for line in lines[1:]} == {"ready"}


def test_deleting_asks_in_a_terminal(live: Living, tiny: Path) -> None:
    spare = live.upload(tiny / "opinions", "رفتنی")
    code, shown = _in_terminal(live, "data", "delete", spare, answer="نه\n")
    assert (code, "رفتنی" in shown) == (1, True)
    code, shown = _in_terminal(live, "data", "delete", spare, answer="\x03")
    assert code == 130
    assert "Traceback" not in shown
    assert live.run("data", "show", spare).returncode == 0
    code, shown = _in_terminal(live, "data", "delete", spare, answer="بله\n")
    assert code == 0
    assert live.run("data", "show", spare).returncode == 3


def test_the_language_is_the_terminals(live: Living) -> None:
    def is_persian(**environment: str) -> bool:
        languages = {"KARGAH_LANG": "", "LC_ALL": "", "LC_MESSAGES": "", "LANG": "", **environment}
        said = live.run("runs", "show", "0" * 32, **languages)
        return "اجرا" in said.stderr

    assert is_persian(LANG="fa_IR.UTF-8")
    assert is_persian(LC_MESSAGES="fa", LANG="en_US.UTF-8")
    assert not is_persian(LC_ALL="C", LC_MESSAGES="fa_IR", LANG="fa_IR")
    assert not is_persian(LC_ALL="POSIX", LANG="fa_IR")
    assert is_persian(KARGAH_LANG="fa", LC_ALL="C")
    assert not is_persian(LANG="fat_GH.UTF-8")
    assert not is_persian()


def test_help_is_in_the_terminals_language(live: Living) -> None:
    english, persian = live.run("--help").stdout, live.run("--help", lang="fa").stdout
    assert "The cause and the cure of an error code." in english
    assert "علت و چارهٔ یک کد خطا." in persian
    for noun in ("assets", "checkpoints", "config", "data", "runs"):
        assert re.search("[آ-ی]", live.run(noun, "--help", lang="fa").stdout)


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1"])
def test_a_terminal_without_persian_letters_gets_them_escaped(live: Living, held: str, encoding: str) -> None:
    def said(*arguments: str) -> str:
        environment = {**live.environment, "KARGAH_LANG": "fa", "PYTHONIOENCODING": encoding, "LANG": "C"}
        done = subprocess.run(_command(*arguments), capture_output=True, env=environment, check=False)
        assert b"Traceback" not in done.stderr
        return (done.stdout + done.stderr).decode(encoding)

    for arguments in (("status",), ("--help",), ("runs", "show", "x")):
        assert "\\u06" in said(*arguments)
    assert "\\u0646\\u0638\\u0631" in said("data")
    as_json = said("data", "show", held, "--json")
    assert as_json.isascii()
    assert json.loads(as_json)["name"] == "نظرهای پایانه‌ها"


def test_an_argument_that_is_no_text_is_used_wrongly(live: Living, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    for arguments in (("runs", "show", odd), ("runs", "-q", odd), ("download", odd)):
        done = live.run(*arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
    assert live.run("explain", odd).returncode == 2
    assert live.run("data", "upload", str(tmp_path / odd), "--name", "x").returncode == 2


def test_a_name_cannot_steer_the_terminal(live: Living, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "\x1b[2Jboo,a\nmoo,b\n" * 5, encoding="utf-8")
    done = live.run("data", "upload", str(tmp_path / "rows.csv"), "--name", "screen", "--json")
    dataset = json.loads(done.stdout)["datasetId"]
    _, shown = _in_terminal(live, "data", "rows", dataset)
    assert "\x1b[2J" not in shown
    assert "\\x1b[2Jboo" in shown
    assert live.run("data", "delete", dataset, "--yes").returncode == 0


def test_a_reader_that_leaves_ends_the_command_quietly(live: Living, held: str) -> None:
    for arguments in (("data", "rows", held, "--limit", "1000"), ("catalog", "--json"), ("--help",), ("explain",)):
        process = subprocess.Popen(
            _command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=live.environment
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaints = process.stderr.read()
        process.stderr.close()
        assert process.wait(PATIENCE_SECONDS) == 141
        assert complaints == b""


def test_a_full_disk_behind_the_output_is_said(live: Living) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            _command("catalog"), stdout=full, stderr=subprocess.PIPE, env=live.environment, check=False
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"space" in done.stderr


def test_sigterm_ends_watching_quietly(live: Living, held: str) -> None:
    config = {"maxSteps": 100_000, "batchSize": 2, "logEverySteps": 1, "maxLength": 8}
    run_id = live.client.post("/api/training/start", {"baseModel": BERT, "datasets": [held], "config": config})["runId"]
    following = subprocess.Popen(
        _command("logs", run_id, "-f"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=live.environment
    )
    assert following.stdout is not None
    assert following.stdout.readline()
    following.send_signal(signal.SIGTERM)
    _, complaints = following.communicate(timeout=PATIENCE_SECONDS)
    assert (following.returncode, complaints) == (143, b"")
    assert live.client.get(f"/api/training/status/{run_id}")["status"] in ("queued", "preparing", "running")
    live.client.post(f"/api/training/stop/{run_id}")
    live.events(f"/api/training/stream/{run_id}")


def _offered(living: Living, typed: str, shell: str = "bash", **environment: str) -> list[str]:
    """What the shell is told to offer behind `typed`."""
    words = typed.split(" ")
    asked = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": typed},
        "fish": {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = subprocess.run(
        [KARGAH],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**living.environment, "_KARGAH_COMPLETE": f"complete_{shell}", **asked, **environment},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.split()


def test_tab_offers_verbs_ids_codes_and_names(live: Living, held: str, make_living: MakeLiving) -> None:
    assert {"status", "logs", "assets"} <= set(_offered(live, "kargah "))
    assert "upload" in _offered(live, "kargah data ")
    assert held in _offered(live, f"kargah data show {held[:3]}")
    assert BERT in _offered(live, "kargah assets show Hoosh")
    assert BERT in _offered(live, "kargah train --base ")
    assert "DISK_FULL" in _offered(live, "kargah explain DISK")
    assert _offered(live, "kargah config get off") == ["offline"]
    assert any(held in line for line in _offered(live, "kargah data show ", "zsh"))
    assert any(line.startswith(held) for line in _offered(live, "kargah data show ", "fish"))
    nobody = make_living("nobody", start=False)
    assert _offered(nobody, "kargah data show ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_each_shell(tmp_path: Path, shell: str) -> None:
    for option in ("--show-completion", "--install-completion"):
        done = subprocess.run(
            [KARGAH, option, shell],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("complete_" + shell in path.read_text(encoding="utf-8") for path in written)
