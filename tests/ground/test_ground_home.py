"""The data directory: one server works on it, and what it holds is counted once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from living import MakeLiving

from kargah.ground.home import Home, HomeUnusable, disk_bytes, folder_name


def test_a_second_server_is_refused_and_told_who(make_living: MakeLiving) -> None:
    first = make_living()
    assert first.process is not None
    refused = first.run("serve", "--port", str(first.port + 1), lang="en")
    assert refused.returncode == 1
    assert "HOME_IN_USE" in refused.stderr
    assert str(first.process.pid) in refused.stderr
    persian = first.run("serve", "--port", str(first.port + 1), lang="fa")
    assert "[HOME_IN_USE]" in persian.stderr
    assert "Another server" not in persian.stderr
    # The one that works was not disturbed, and leaves the directory when it is killed.
    assert first.client.get("/api/health")["status"] == "ready"
    assert Home(first.home).server_pid() == first.process.pid
    first.kill()
    assert Home(first.home).server_pid() is None
    first.start()


def test_no_start_on_an_open_address_without_a_token(make_living: MakeLiving) -> None:
    refused = make_living(start=False).run("serve", "--host", "0.0.0.0", "--port", "1")
    assert refused.returncode == 1
    assert "TOKEN_REQUIRED" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_bad_setting_is_a_sentence_and_no_traceback(make_living: MakeLiving) -> None:
    refused = make_living(start=False, local_runs="many").run("serve")
    assert refused.returncode == 1
    assert "KARGAH_LOCAL_RUNS" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_port_that_is_taken_is_a_sentence(make_living: MakeLiving) -> None:
    first = make_living()
    other = make_living("other", start=False)
    refused = other.run("serve", "--port", str(first.port))
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert str(first.port) in refused.stderr


def test_a_running_server_has_neither_torch_nor_transformers(tmp_path: Path, site_catalog: Path) -> None:
    program = """
import sys
from pathlib import Path
from starlette.testclient import TestClient
from kargah.app.cli import app
from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.ground.settings import Settings
application = Application(Platform(Settings(home=Path(sys.argv[1]), catalog=Path(sys.argv[2]))))
with TestClient(application.asgi, base_url="http://127.0.0.1") as client:
    for path in ("/api/health", "/api/openapi.json", "/api/assets", "/api/catalog/models"):
        assert client.get(path).status_code == 200, path
    client.post("/api/training/start", json={"baseModel": "a", "datasets": ["b"]})
heavy = {"torch", "transformers", "accelerate", "sklearn", "safetensors", "tokenizers", "datasets"}
print(sorted(heavy & set(sys.modules)), sorted(name for name in sys.modules if name.startswith("kargah.compute")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "home"), str(site_catalog)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] []"


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(HomeUnusable) as refused:
        Home(tmp_path / "file" / "home").prepare()
    assert str(tmp_path / "file") in refused.value.message("fa")


def test_shared_files_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1" * 1000)
    os.link(tmp_path / "a" / "x", tmp_path / "b" / "x")
    (tmp_path / "b" / "y").write_bytes(b"2" * 10)
    assert disk_bytes([tmp_path / "a", tmp_path / "b", tmp_path / "a"]) == 1010
    assert disk_bytes([tmp_path / "missing"]) == 0


def test_folder_names() -> None:
    assert folder_name("org/name") == "org--name"
