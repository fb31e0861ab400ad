"""`kargah doctor --full`, by child processes: a whole examination, broken homes, hubs that fail at every step."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from living import BERT, NOBODY, PATIENCE_SECONDS, Living, MakeLiving, free_port

from kargah import __version__
from kargah.app.doctor.devices import examine_device, facts_of
from kargah.app.doctor.disk import QUICK, examine_disk
from kargah.app.doctor.findings import Finding
from kargah.app.doctor.hubs import examine_hubs, hub_facts
from kargah.app.doctor.programs import run_program
from kargah.app.doctor.report import Veil, as_text
from kargah.app.doctor.sharing import examine_sharing
from kargah.app.doctor.system import cgroup_memory
from kargah.ground.settings import Settings
from kargah.hub.endpoint import Endpoint
from kargah.hub.reachability import try_endpoint

SECRET = "hf_" + "Q7" * 12
USER, HOST = "shirinfarhad", "bisotun-station"


def _full(living: Living, *arguments: str, lang: str = "en", **environment: str) -> "subprocess.CompletedProcess[str]":
    return living.run("doctor", "--full", "--quick", *arguments, lang=lang, **environment)


def _states(findings: list[Finding]) -> dict[str, str]:
    """The worst state of each subject."""
    order = ["ok", "warning", "error"]
    states: dict[str, str] = {}
    for finding in findings:
        states[finding.subject] = max(states.get(finding.subject, "ok"), finding.state, key=order.index)
    return states


def test_a_sound_machine_is_examined_whole(live: Living) -> None:
    done = _full(live, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    report = said["report"]
    findings = [Finding(**finding) for finding in said["findings"]]
    assert set(_states(findings).values()) == {"ok"}
    assert {finding.subject for finding in findings} >= {"disk", "locks", "database", "server", "hub", "device"}

    disk = report["disk"]
    assert disk["sequentialBytes"] == QUICK.file_bytes
    assert disk["fsyncP95Seconds"] >= disk["fsyncP50Seconds"] > 0
    assert set(disk["sharing"].values()) == {"works"}
    assert report["server"] | {"database": "", "port": 0} == {
        "isRunning": True,
        "version": __version__,
        "database": "",
        "isSameVersion": True,
        "isPrivateAddress": True,
        "port": 0,
        "problem": None,
    }
    (hub,) = report["hub"]["endpoints"]
    assert (hub["isHub"], hub["failedStep"], hub["hasCommitHeader"]) == (True, None, True)
    assert hub["latencySeconds"] > 0
    (device,) = [device for device in report["compute"]["devices"] if device["name"] == "cpu"]
    assert device["training"]["falls"]
    assert device["reload"]["isIdentical"]
    assert device["failures"] == []
    _has_reasons(report)
    assert not [*live.home.glob(".kargah-doctor-*"), *live.home.glob("**/sequential")]


def _has_reasons(facts: Any) -> None:
    """What was not measured says why; a reason stands only beside what was not measured."""
    if isinstance(facts, list):
        for entry in facts:
            _has_reasons(entry)
    elif isinstance(facts, dict):
        for name in facts.get("unmeasured", {}):
            assert facts[name] is None, name
        for name, value in facts.items():
            if value is None:
                no_event = name in ("problem", "gpuProblem", "failedStep", "reason")
                assert no_event or facts["unmeasured"][name], name
            _has_reasons(value)


def test_the_report_can_be_pasted_and_names_nobody(tmp_path: Path) -> None:
    """Run by a person whose home, user, host and tokens are known; with a hub of a telling name."""
    home = tmp_path / USER
    home.mkdir()
    person = Living(
        home / "داده‌های کارگاه", hub_endpoint=f"http://{HOST}.invalid", hub_token=SECRET, token=SECRET[::-1]
    )
    environment = {"HOME": str(home), "USER": USER, "LOGNAME": USER, "HOSTNAME": HOST, "HF_TOKEN": SECRET}
    environment["HTTPS_PROXY"] = f"http://{USER}:{SECRET}@127.0.0.1:9"
    done = _full(person, "--device", "cpu", lang="fa", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    above, block = done.stdout.split("```")[0:2]
    assert re.search("[آ-ی]", above)
    assert not re.search("[؀-ۿ]", block)
    assert all(len(line) <= 120 for line in block.splitlines())
    for field in ("[system]", "[disk]", "fsync p95", "[hub endpoints 1]", "training median step", "[cpu]"):
        assert field in block, field
    whole = done.stdout + _full(person, "--device", "cpu", "--json", **environment).stdout
    for secret in (USER, HOST, SECRET, SECRET[::-1], str(tmp_path), str(Path.home()), person.home.name, sys.prefix):
        assert secret not in whole, secret
    assert re.search(r"\bcredentials +yes", block)


def test_plain_doctor_loads_neither_torch_nor_the_devices(make_living: MakeLiving) -> None:
    alone = make_living("alone", start=False, offline="1")
    program = (
        "import runpy, sys\nsys.argv = ['kargah', 'doctor', '--json']\n"
        "try:\n    runpy.run_module('kargah.app.cli', run_name='__main__')\n"
        "finally:\n    sys.stderr.write(repr('torch' in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", env=alone.environment, check=False
    )
    assert json.loads(done.stdout)["version"] == __version__
    assert done.stderr.endswith("False")
    assert not alone.home.exists()


def test_offline_opens_no_socket(make_living: MakeLiving, asked: "Asked") -> None:
    alone = make_living("alone", start=False, offline="1", hub_endpoint=asked.url)
    done = _full(alone, "--device", "none", "--json")
    report = json.loads(done.stdout)["report"]
    assert report["hub"]["isOffline"]
    assert report["hub"]["endpoints"] == []
    assert asked.paths == []
    assert _full(alone, "--device", "none").stdout.count("no socket") == 1


def test_a_device_that_is_not_there_fails_and_belongs_to_full(make_living: MakeLiving) -> None:
    alone = make_living("alone", start=False, offline="1")
    done = _full(alone, "--device", "cuda:77", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert said["report"]["compute"]["devices"] == []
    assert "cuda:77" in next(f["message"] for f in said["findings"] if f["subject"] == "device")
    assert alone.run("doctor", "--device", "cpu").returncode == 2


def test_settings_that_cannot_be_read_leave_the_machine_to_look_at(make_living: MakeLiving) -> None:
    done = _full(make_living("broken", start=False, local_runs="many"), "--device", "none", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert "KARGAH_LOCAL_RUNS" in done.stdout
    assert said["report"]["memory"]["totalBytes"] > 0
    assert "disk" not in said["report"]


def test_without_the_training_part_the_rest_is_examined(tmp_path: Path, make_living: MakeLiving) -> None:
    """An environment of links to every installed package but torch's."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("torch") and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    source = Path(sys.modules["kargah"].__path__[0]).parent
    alone = make_living("alone", start=False)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "kargah.app.cli", "doctor", "--full", "--quick", "--json"],
        capture_output=True,
        encoding="utf-8",
        env={**alone.environment, "PYTHONPATH": f"{packages}{os.pathsep}{source}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    findings = {finding["subject"]: finding for finding in said["findings"]}
    assert findings["compute"]["state"] == "warning"
    assert "kargah setup compute" in findings["compute"]["message"]
    assert said["report"]["compute"] == {"isInstalled": False, "devices": []}
    assert said["report"]["disk"]["sharing"]["sqliteWal"] == "works"
    assert said["report"]["hub"]["endpoints"][0]["failedStep"] == "tcp"


def test_a_home_that_cannot_be_written_is_broken(tmp_path: Path, make_living: MakeLiving) -> None:
    """A file stands where a folder should; not even the super-user writes below it."""
    (tmp_path / "file").touch()
    done = _full(make_living("file/home", start=False, offline="1"), "--device", "none", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert said["report"]["disk"]["isWritable"] is False
    assert _states([Finding(**finding) for finding in said["findings"]])["disk"] == "error"
    assert str(tmp_path) not in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user writes into read-only folders")
def test_a_read_only_home_is_broken(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o555)
    found = examine_disk(Settings(home=home), "en", QUICK)
    assert _states(found.findings) == {"disk": "error"}


def test_a_full_home_is_told_in_both_languages(tmp_path: Path) -> None:
    english = examine_disk(Settings(home=tmp_path), "en", QUICK)
    persian = examine_disk(Settings(home=tmp_path), "fa", QUICK)
    assert _states(english.findings) == _states(persian.findings) == {"disk": "ok", "locks": "ok", "database": "ok"}
    assert all(re.search("[آ-ی]", finding.message) for finding in persian.findings)
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_is_shared_is_broken(tmp_path: Path) -> None:
    found = examine_sharing(tmp_path / "gone", "en", uses_sqlite=True)
    assert _states(found.findings) == {"disk": "error", "locks": "error", "database": "error"}
    lenient = examine_sharing(tmp_path / "gone", "en", uses_sqlite=False)
    assert _states(lenient.findings)["database"] == "warning"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_tests_and_leaves_nothing(make_living: MakeLiving, number: int, code: int) -> None:
    alone = make_living("alone", start=False, offline="1")
    alone.home.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "kargah.app.cli", "doctor", "--full"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**alone.environment, "KARGAH_LANG": "en", "TMPDIR": str(alone.home)},
    )
    assert process.stderr is not None
    while "device cpu" not in process.stderr.readline():
        assert process.poll() is None
    children = _until(lambda: psutil.Process(process.pid).children(recursive=True))
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code
    assert ("Interrupted" in errors) == (number == signal.SIGINT)
    assert "Traceback" not in errors
    assert output == ""
    psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    assert not any(child.is_running() for child in children)
    assert list(alone.home.iterdir()) == []


def _until(what: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


# Programs and devices


def _program(code: str, limit_seconds: float = PATIENCE_SECONDS) -> Any:
    return run_program([sys.executable, "-c", code], environment=os.environ, limit_seconds=limit_seconds)


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    ended = _program(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        'print(\'{"type": "stage", "stage": "bandwidth"}\', flush=True)\n'
        "time.sleep(1000)",
        limit_seconds=3.0,
    )
    assert ended.is_timed_out
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == int(pid_file.read_text())], timeout=10)
    assert not psutil.pid_exists(int(pid_file.read_text())) or _is_zombie(int(pid_file.read_text()))
    (failure,) = facts_of("cuda:0", ended)["failures"]
    assert (failure["stage"], failure["error"]) == ("bandwidth", "TIMED_OUT")


def _is_zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_crash_says_where_and_by_which_signal() -> None:
    ended = _program(
        "import os, sys\n"
        "print('a library says hello')\n"
        'print(\'{"type": "device", "kind": "cuda", "model": "G"}\')\n'
        'print(\'{"type": "stage", "stage": "gemm float32"}\', flush=True)\n'
        "sys.stderr.write('driver: lost\\n'); sys.stderr.flush()\n"
        "os.kill(os.getpid(), 11)"
    )
    facts = facts_of("cuda:0", ended)
    assert facts["model"] == "G"
    detail = "ended by SIGSEGV: driver: lost"
    assert facts["failures"] == [{"stage": "gemm float32", "error": "CRASHED", "detail": detail}]


def test_a_device_that_torch_lost_meanwhile_is_a_failure() -> None:
    facts = examine_device("cuda:99", quick=True)
    (failure,) = facts["failures"]
    assert failure["error"] == "ENDED_EARLY"
    assert "no device cuda:99" in failure["detail"]


# Hubs


class Asked:
    """A web server that is no hub, and what it was asked for. `answer` is a status, a type and a body."""

    def __init__(self, status: int = 200, kind: str = "text/html", body: bytes = b"<html>log in</html>") -> None:
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def asked() -> Iterator[Asked]:
    with Asked() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def own_hub(tmp_path: Path) -> Iterator[str]:
    """Our own hub server with a file large enough to be timed."""
    folder = tmp_path / "hub" / "models" / "lab" / "bert"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(1_000_000))
    (folder / "config.json").write_text("{}", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "kargah.hub.serve", str(tmp_path / "hub")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_our_own_hub_is_a_hub_and_its_speed_is_measured(own_hub: str, model_hub: str) -> None:
    facts = hub_facts(try_endpoint(Endpoint(own_hub), ["lab/absent"]))
    assert (facts["isHub"], facts["failedStep"], facts["status"], facts["usesProxy"]) == (True, None, 200, False)
    assert facts["downloadedBytes"] == 1_000_000
    assert facts["bytesPerSecond"] > 0
    assert facts["unmeasured"] == {"tlsSeconds": "plain HTTP"}
    small = hub_facts(try_endpoint(Endpoint(model_hub), [BERT]))
    assert small["isHub"]
    assert (small["bytesPerSecond"] is None) == ("bytesPerSecond" in small["unmeasured"])


def test_each_step_that_fails_is_named() -> None:
    with ExitStack() as stack:
        portal = stack.enter_context(Asked())
        lost = stack.enter_context(Asked(404, "application/json", b'{"error": "not found"}'))
        busy = stack.enter_context(Asked(503))
        closed = stack.enter_context(Asked(401, "application/json", b"{}"))
        mute = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=_hang_up, args=(mute,), daemon=True).start()
        expected = {
            f"http://{HOST}.invalid": ("dns", "the name is not known"),
            f"http://127.0.0.1:{free_port()}": ("tcp", "refused"),
            portal.url.replace("http:", "https:"): ("tls", "TLS failed"),
            f"http://127.0.0.1:{mute.getsockname()[1]}": ("http", "closed without an answer"),
            busy.url: ("http", "HTTP 503"),
            closed.url: ("http", "HTTP 401"),
            portal.url: ("hub", "no hub (HTTP 200)"),
            lost.url: ("hub", "no hub (HTTP 404)"),
        }
        settings = Settings(hub_endpoint=tuple(expected))
        found = examine_hubs(settings, "en", [BERT])
    for facts, finding, (step, reason) in zip(found.facts["endpoints"], found.findings, expected.values(), strict=True):
        assert facts["failedStep"] == step, facts
        assert reason in facts["reason"], facts
        assert finding.state == "warning"
        assert reason in finding.message
    assert HOST not in repr(found)


def _hang_up(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(4096)


def test_a_certificate_that_nobody_trusts_is_a_tls_failure(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_shake_hands, args=(server, context), daemon=True).start()
        facts = hub_facts(try_endpoint(Endpoint(f"https://localhost:{server.getsockname()[1]}"), []))
    assert facts["failedStep"] == "tls"
    assert "certificate" in facts["reason"]


def _shake_hands(server: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = server.accept()
            with context.wrap_socket(connection, server_side=True):
                pass
        except ssl.SSLError:
            continue
        except OSError:
            return


def test_a_proxy_stands_in_between_and_keeps_its_secrets(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    address = asked.url.removeprefix("http://")
    monkeypatch.setenv("http_proxy", f"http://{USER}:{SECRET}@{address}")
    found = examine_hubs(Settings(hub_endpoint=("http://hub.invalid",)), "en", [])
    (facts,) = found.facts["endpoints"]
    assert facts["usesProxy"]
    assert facts["failedStep"] == "hub"
    assert asked.paths[0].startswith("http://hub.invalid/api/models")
    port = int(address.rpartition(":")[2])
    assert found.facts["proxies"] == [{"for": "http", "scheme": "http", "port": port, "hasCredentials": True}]
    assert USER not in repr(found)
    assert SECRET not in repr(found)
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    assert try_endpoint(Endpoint(NOBODY), []).failed_step == "proxy"


# The report


def test_a_veil_lies_over_values_and_not_over_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HOME": str(tmp_path / USER), "USER": USER, "HOSTNAME": HOST, "HF_TOKEN": SECRET}.items():
        monkeypatch.setenv(name, value)
    settings = Settings(home=tmp_path / USER / "kept", hub_endpoint=("https://hub.example.org",))
    veil = Veil(settings)
    for told, shown in {
        f"cannot open {tmp_path}/{USER}/.cache/x": "cannot open ~/.cache/x",
        f"{tmp_path}/{USER}/kept/runs: full": "<KARGAH_HOME>/runs: full",
        f"{USER}@{HOST}: no": "<user>@<host>: no",
        f"{USER}-laptop": "<user>-laptop",
        f"token {SECRET} and hf_abcdefgh12": "token <token> and <token>",
        "https://me:pw@hub.example.org/x": "https://<host>/x",
        "open '/data/project x/y.so'": "open '…/project x/y.so'",
        "2.9 GB/s and/or GFLOP/s, kargah": "2.9 GB/s and/or GFLOP/s, kargah",
    }.items():
        assert veil.over(told) == shown
    assert veil.over({USER: [USER, 3, None, True]}) == {USER: ["<user>", 3, None, True]}


def test_facts_become_lines() -> None:
    text = as_text(
        {
            "seconds": 61.5,
            "disk": {"freeBytes": 2_100_000_000, "fsyncP95Seconds": 0.0123, "isWritable": True},
            "compute": {
                "devices": [
                    {
                        "name": "cuda:0",
                        "gemm": {"float32": {"bestGflops": 81234.5}, "float16": {"bestGflops": None}},
                        "peakBytes": None,
                        "losses": [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03, 0.01],
                        "unmeasured": {"peakBytes": "nobody tells"},
                    }
                ]
            },
        }
    )
    lines = [re.sub(r"  +", " | ", line) for line in text.splitlines()]
    assert lines[0] == lines[-1] == "```"
    for line in (
        "seconds | 61.50 s",
        "[disk]",
        "free | 2.1 GB",
        "fsync p95 | 12.30 ms",
        "writable | yes",
        "[cuda:0]",
        "gemm float32 best | 81234.5 GFLOP/s",
        "gemm float16 best | none",
        "peak | not measured: nobody tells",
        "losses | 1, 0.5, 0.25, …, 0.0625, 0.03, 0.01",
    ):
        assert line in lines, line


def test_the_smallest_memory_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    assert cgroup_memory(tmp_path, {"": "/outer/inner"}) == (None, None)
    (inner / "memory.max").write_text("max\n")
    assert cgroup_memory(tmp_path, {"": "/outer/inner"}) == (2, None)
    (tmp_path / "outer" / "memory.max").write_text("4000000000\n")
    (inner / "memory.max").write_text("5000000000\n")
    assert cgroup_memory(tmp_path, {"": "/outer/inner"}) == (2, 4_000_000_000)
    first = tmp_path / "memory" / "docker"
    first.mkdir(parents=True)
    (first / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert cgroup_memory(tmp_path, {"memory": "/docker"}) == (1, None)
    (first / "memory.limit_in_bytes").write_text("3000000000")
    assert cgroup_memory(tmp_path, {"memory": "/docker"}) == (1, 3_000_000_000)
