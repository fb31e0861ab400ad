"""Endpoints listed and tested: by the API, by the command, with tokens that go to their own origin and nowhere else."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from faults import Fault, FaultProxy, Seen
from living import BERT, Living, MakeLiving, free_port
from scripted_hub import Said, ScriptedHub
from workshop import RunningHub

from kargah.ground.errors import SettingsInvalid
from kargah.ground.settings import Settings, load_settings
from kargah.hub.endpoint import configured_endpoints
from kargah.hub.reachability import try_configured

FIRST, SECOND = "hf_" + "First0" * 4, "hf_" + "Second" * 4
SPEED_REPO = "org/speed"


@pytest.fixture
def speedy(hub: RunningHub) -> RunningHub:
    hub.add(SPEED_REPO, {"config.json": b"{}", "model.safetensors": bytes(1_000_000)})
    return hub


@pytest.fixture
def portal() -> Iterator[ScriptedHub]:
    """A network's login page, whatever is asked for."""
    with ScriptedHub() as page:
        page.say("/api/models", Said(body="<html>ورود به شبکه</html>"))
        yield page


def _post(living: Living, body: Any, language: str = "en") -> httpx.Response:
    return httpx.post(
        f"{living.url}/api/hub/endpoints/test",
        json=body,
        headers={"Accept-Language": language},
        trust_env=False,
        timeout=60,
    )


def test_every_step_that_fails_is_named_in_both_languages(
    speedy: RunningHub, portal: ScriptedHub, tls: ssl.SSLContext, make_living: MakeLiving
) -> None:
    with FaultProxy(speedy.url, Fault(on="/api/", status=503)) as busy, socket.create_server(("127.0.0.1", 0)) as mute:
        threading.Thread(target=_hang_up, args=(mute,), daemon=True).start()
        expected = {
            speedy.url: None,
            "http://hub.invalid": "dns",
            f"http://127.0.0.1:{free_port()}": "tcp",
            portal.url.replace("http:", "https:"): "tls",
            busy.url: "http",
            f"http://127.0.0.1:{mute.getsockname()[1]}": "http",
            portal.url: "hub",
        }
        living = make_living(hub_endpoint=",".join(expected))
        listed = living.client.get("/api/hub/endpoints")
        assert [(one["number"], one["url"], one["hasToken"]) for one in listed] == [
            (number, url, False) for number, url in enumerate(expected, start=1)
        ]
        tested = living.client.post("/api/hub/endpoints/test", {})
        assert {one["url"]: one["failedStep"] for one in tested} == expected
        good = tested[0]
        assert good["ok"]
        assert good["latencyMs"] > 0
        assert good["bytesPerSecond"] > 0
        assert all(not one["ok"] and one["reason"] in one["message"] for one in tested[1:])
        persian = _post(living, {"url": portal.url}, "fa").json()["data"]
        assert [one["url"] for one in persian] == [portal.url]
        assert "هاب نیست" in persian[0]["message"]

        done = living.run("hub", "test", "--json")
        assert done.returncode == 1
        assert {one["url"]: one["failedStep"] for one in json.loads(done.stdout)} == expected
        shown = living.run("hub", "test", lang="fa").stdout
        assert "نام این نشانی پیدا نشد" in shown
        assert "HTTP 503" in shown
        assert living.run("hub", "test", portal.url).returncode == 4
        assert living.run("hub", "test", speedy.url + "/").returncode == 0
        assert speedy.url in living.run("hub").stdout


def _hang_up(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(4096)


def test_nobody_is_sent_to_an_address_that_is_not_configured(
    speedy: RunningHub, portal: ScriptedHub, make_living: MakeLiving
) -> None:
    living = make_living(hub_endpoint=speedy.url)
    for other in (portal.url, f"{speedy.url}@{portal.url.removeprefix('http://')}", f"{speedy.url}/..", "", "file:///"):
        answer = _post(living, {"url": other})
        assert (answer.status_code, answer.json()["error"]) == (400, "VALIDATION_FAILED"), other
    assert living.run("hub", "test", portal.url).returncode == 2
    assert portal.requests == []


def test_offline_no_endpoint_is_asked(portal: ScriptedHub, make_living: MakeLiving) -> None:
    living = make_living(hub_endpoint=portal.url, offline="1")
    answer = _post(living, {})
    assert (answer.status_code, answer.json()["error"]) == (409, "OFFLINE")
    done = living.run("hub", "test")
    assert (done.returncode, "OFFLINE" in done.stderr) == (3, True)
    assert portal.url in living.run("hub", "list").stdout
    assert portal.requests == []


# Tokens


def _carried(requests: list[Seen]) -> set[str | None]:
    return {seen.headers.get("authorization") for seen in requests}


def test_each_endpoint_gets_its_own_token_and_nobody_tells_it(model_hub: str, make_living: MakeLiving) -> None:
    with FaultProxy(model_hub) as storage, FaultProxy(model_hub) as second:
        # The first knows the repository and sends on for its weights; what is broken there comes from the second.
        away = Fault(on="model.safetensors", status=302, headers={"Location": f"{storage.url}/gone"}, times=2)
        with FaultProxy(model_hub, away, Fault(on="model.safetensors", status=404)) as first:
            tokens = json.dumps({f"{first.url}/": FIRST, second.url: SECOND})
            living = make_living(hub_endpoint=f"{first.url},{second.url}", hub_tokens=tokens)
            command_lines: set[str] = set()
            watching = _watch(living, command_lines)
            last = living.fetch(BERT)[-1]
            watching()
            assert last.data["status"] == "done", last.data
            assert storage.requests
            assert second.file_requests("model.safetensors")
            assert _carried(first.requests) == {f"Bearer {FIRST}"}
            assert _carried(second.requests) == {f"Bearer {SECOND}"}
            assert _carried(storage.requests) == {None}

            first.faults.clear()
            listed = living.client.get("/api/hub/endpoints")
            assert [one["hasToken"] for one in listed] == [True, True]
            tested = living.client.post("/api/hub/endpoints/test", {})
            assert [one["ok"] for one in tested] == [True, True]
            assert _carried(second.requests) == {f"Bearer {SECOND}"}
            said = [
                json.dumps([listed, tested]),
                *command_lines,
                *(
                    living.run(*words).stdout
                    for words in (("config", "list", "--json"), ("config", "get", "hub_tokens"))
                ),
                *(living.run(*words).stdout for words in (("hub", "--json"), ("hub", "test"), ("doctor",))),
                living.run("doctor", "--full", "--quick", "--device", "none", "--json").stdout,
                living.log.read_text(encoding="utf-8"),
            ]
            assert any("kargah.hub.worker" in line for line in command_lines)
            for path in living.home.rglob("*"):
                if path.is_file() and path.stat().st_size < 1_000_000:
                    said.append(path.read_bytes().decode("utf-8", "replace"))
            for text in said:
                assert FIRST not in text
                assert SECOND not in text


def _watch(living: Living, command_lines: set[str]) -> Callable[[], None]:
    """Notes the command lines of the server's children until it is called."""
    ended = threading.Event()
    assert living.process is not None
    server = psutil.Process(living.process.pid)

    def look() -> None:
        while not ended.wait(0.01):
            for child in [server, *server.children(recursive=True)]:
                try:
                    command_lines.add(" ".join(child.cmdline()))
                except psutil.Error:
                    continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end


@pytest.mark.parametrize(
    "given",
    ['{"http://a.example": "one", "http://b.example/": "two=="}', "http://a.example=one, http://b.example/=two=="],
)
def test_tokens_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("KARGAH_HUB_ENDPOINT", "http://a.example,http://b.example,http://c.example")
    monkeypatch.setenv("KARGAH_HUB_TOKENS", given)
    monkeypatch.setenv("KARGAH_HUB_TOKEN", "general")
    settings = load_settings(home=tmp_path)
    assert [endpoint.token for endpoint in configured_endpoints(settings)] == ["one", "two==", None]
    assert "two==" not in repr(settings)
    assert settings.secrets == {"one", "two==", "general"}


def test_tokens_from_the_file_and_the_first_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kargah.toml").write_text(
        'hub_endpoint = ["http://a.example", "http://b.example"]\nhub_token = "general"\n'
        '[hub_tokens]\n"http://b.example" = "two"\n',
        encoding="utf-8",
    )
    assert [one.token for one in configured_endpoints(load_settings(home=tmp_path))] == ["general", "two"]
    # The endpoints of the file, the tokens of the environment.
    monkeypatch.setenv("KARGAH_HUB_TOKENS", "http://a.example=other")
    assert [one.token for one in configured_endpoints(load_settings(home=tmp_path))] == ["other", None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("http://elsewhere.example=hidden", "http://elsewhere.example is not one of"),
        ("hidden", "entry 1 is no"),
        ("hidden=http://a.example", "an address is not one of"),
        ("http://a.example=one,hidden", "entry 2 is no"),
        ('{"http://a.example": "hidden"', "JSON"),
        ('{"http://a.example": 5}', ""),
    ],
)
def test_a_token_without_its_endpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.setenv("KARGAH_HUB_ENDPOINT", "http://a.example")
    monkeypatch.setenv("KARGAH_HUB_TOKENS", given)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(home=tmp_path)
    assert caught.value.params["name"].startswith("KARGAH_HUB_TOKENS")
    assert said in caught.value.params["problem"]
    assert "hidden" not in caught.value.message("en") + caught.value.message("fa")


def test_a_password_in_an_endpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(home=tmp_path, hub_endpoint="https://someone:hidden@hub.example")
    assert "KARGAH_HUB_TOKENS" in caught.value.params["problem"]
    assert "hidden" not in str(caught.value)


def test_tokens_written_by_the_command_are_for_their_owner_alone(make_living: MakeLiving) -> None:
    living = make_living(start=False)
    del living.settings["hub_endpoint"]
    assert living.run("config", "set", "hub_tokens", f"https://huggingface.co={FIRST}").returncode == 0
    file = living.home / "kargah.toml"
    assert FIRST in file.read_text(encoding="utf-8")
    assert file.stat().st_mode & 0o077 == 0
    shown = json.loads(living.run("config", "get", "hub_tokens", "--json").stdout)
    assert (shown["value"], shown["secret"], shown["set"]) == (None, True, True)
    assert [one["hasToken"] for one in json.loads(living.run("hub", "--json").stdout)] == [True]


# Redirects


def test_a_redirect_to_a_private_address_is_the_settings_choice(
    speedy: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public hub, reached by a proxy, that sends everything on to this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for is_allowed in (False, True):
        place = f"{speedy.url}/api/models"
        with FaultProxy(speedy.url, Fault(on="/api/models", status=302, headers={"Location": place}, times=3)) as way:
            monkeypatch.setenv("http_proxy", way.url)
            settings = Settings(hub_endpoint=("http://hub.example",), allow_private_redirects=is_allowed)
            (reached,) = try_configured(settings, [SPEED_REPO])
            assert reached.failed_step == (None if is_allowed else "hub")
