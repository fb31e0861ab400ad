"""`kargah config`: every setting with its origin, secrets unseen, and `kargah.toml` changed whole or not at all."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from living import Living

WRITTEN = """# what this place needs
offline = true  # until the line is there

# two mirrors
hub_endpoint = ["https://one.example", "https://two.example"]
"""


@pytest.fixture
def place(tmp_path: Path) -> Living:
    """A data directory with a settings file and no server."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "kargah.toml").write_text(WRITTEN, encoding="utf-8")
    return Living(tmp_path / "home")


def _file(place: Living) -> Path:
    return place.home / "kargah.toml"


def _facts(place: Living, **environment: str) -> dict[str, dict[str, Any]]:
    done = place.run("config", "list", "--json", **environment)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_every_setting_is_listed_with_its_origin(place: Living) -> None:
    facts = _facts(place, KARGAH_LOCAL_RUNS="3")
    assert (facts["offline"]["value"], facts["offline"]["source"]) == (True, "file")
    assert facts["hub_endpoint"]["value"] == ["https://one.example", "https://two.example"]
    assert (facts["local_runs"]["value"], facts["local_runs"]["source"]) == (3, "environment")
    assert facts["catalog"]["source"] == "default"
    assert facts["home"]["variable"] == "KARGAH_HOME"
    assert "پرونده" in place.run("config", "list", lang="fa").stdout
    assert place.run("config", "get", "KARGAH_OFFLINE").stdout == "true\n"
    assert place.run("config", "get", "hub-endpoint").stdout == "https://one.example,https://two.example\n"
    assert place.run("config", "path").stdout.strip() == str(_file(place))


def test_set_and_unset_keep_comments_and_order(place: Living) -> None:
    assert place.run("config", "set", "local_runs", "2").returncode == 0
    assert place.run("config", "set", "offline", "no").returncode == 0
    assert place.run("config", "set", "hub_endpoint", "https://three.example/").returncode == 0
    assert _file(place).read_text(encoding="utf-8") == (
        WRITTEN.replace("true", "false").replace(
            '"https://one.example", "https://two.example"', '"https://three.example"'
        )
        + "local_runs = 2\n"
    )
    assert place.run("config", "unset", "local_runs").returncode == 0
    assert "local_runs" not in _file(place).read_text(encoding="utf-8")
    assert place.run("config", "unset", "local_runs").returncode == 0
    assert _facts(place)["local_runs"]["source"] == "default"


def test_what_cannot_be_read_is_not_written(place: Living) -> None:
    for name, value in (
        ("local_runs", "many"),
        ("local_runs", "-1"),
        ("hub_endpoint", "ftp://x"),
        ("storage_url", "s3://bucket"),
        ("home", "/elsewhere"),
        ("ofline", "true"),
    ):
        refused = place.run("config", "set", "--", name, value)
        assert refused.returncode == 2, (name, value)
        assert "Traceback" not in refused.stderr
    assert "offline" in place.run("config", "set", "ofline", "true").stderr
    assert place.run("config", "get", "ofline").returncode == 2
    assert _file(place).read_text(encoding="utf-8") == WRITTEN
    assert [path.name for path in place.home.iterdir()] == ["kargah.toml"]


def test_a_secret_is_written_for_its_owner_alone_and_never_shown(place: Living) -> None:
    secret = "a-very-secret-token"
    _file(place).chmod(0o644)
    set_unseen = subprocess.run(
        [sys.executable, "-m", "kargah.app.cli", "config", "set", "token"],
        input=secret + "\n",
        capture_output=True,
        text=True,
        env=place.environment,
        check=False,
    )
    assert set_unseen.returncode == 0, set_unseen.stderr
    assert f'token = "{secret}"' in _file(place).read_text(encoding="utf-8")
    assert stat.S_IMODE(_file(place).stat().st_mode) == 0o600
    said = [place.run("config", *arguments) for arguments in (("list",), ("list", "--json"), ("get", "token"))]
    assert not any(secret in one.stdout + one.stderr for one in (*said, set_unseen))
    assert said[2].stdout == "set\n"
    assert _facts(place)["token"] | {"value": 1} == _facts(place)["token"] | {"value": 1, "set": True}
    database = "postgresql+psycopg://kargah:geheim@db/kargah"
    assert "geheim" not in place.run("config", "list", KARGAH_DATABASE_URL=database).stdout


def test_a_link_stays_a_link_and_a_mode_stays(place: Living, tmp_path: Path) -> None:
    real = tmp_path / "kept.toml"
    real.write_text(WRITTEN, encoding="utf-8")
    real.chmod(0o640)
    _file(place).unlink()
    _file(place).symlink_to(real)
    assert place.run("config", "set", "local_runs", "1").returncode == 0
    assert _file(place).is_symlink()
    assert "local_runs = 1" in real.read_text(encoding="utf-8")
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_damaged_file_is_said_and_a_strange_name_can_be_taken_out(place: Living) -> None:
    _file(place).write_text("offline = \n", encoding="utf-8")
    for arguments in (("list",), ("set", "offline", "true"), ("unset", "offline")):
        refused = place.run("config", *arguments)
        assert refused.returncode in (1, 2)
        assert "[SETTINGS_INVALID]" in refused.stderr
    _file(place).write_text("offline = true\nsong = 3\n", encoding="utf-8")
    assert place.run("config", "list").returncode == 1
    assert place.run("config", "set", "local_runs", "1").returncode == 2
    assert place.run("config", "unset", "song").returncode == 0
    assert place.run("config", "list").returncode == 0


def test_the_environment_wins_and_that_is_said(place: Living) -> None:
    done = place.run("config", "set", "local_runs", "2", KARGAH_LOCAL_RUNS="4")
    assert done.returncode == 0
    assert "KARGAH_LOCAL_RUNS" in done.stderr
    # A bad environment does not stop the file from being mended.
    assert place.run("config", "set", "local_runs", "3", KARGAH_MAX_UPLOAD_BYTES="much").returncode == 0
    assert place.run("config", "list", KARGAH_MAX_UPLOAD_BYTES="much").returncode == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_said(place: Living) -> None:
    place.home.chmod(0o500)
    try:
        refused = place.run("config", "set", "local_runs", "2")
    finally:
        place.home.chmod(0o700)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
