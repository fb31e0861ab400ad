"""Settings: environment over file over defaults, and a bad value is named."""

from pathlib import Path
from typing import Any

import pytest

from kargah.ground.errors import SettingsInvalid
from kargah.ground.settings import PUBLIC_HUB, load_settings


def test_defaults(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    assert settings.hub_endpoint == (PUBLIC_HUB,)
    assert settings.effective_database_url == f"sqlite:///{tmp_path / 'kargah.db'}"
    assert settings.token is None
    assert settings.offline is False


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kargah.toml").write_text(
        'offline = true\nlocal_runs = 3\nhub_endpoint = ["http://a.example", "http://b.example/"]\n', encoding="utf-8"
    )
    monkeypatch.setenv("KARGAH_HOME", str(tmp_path))
    monkeypatch.setenv("KARGAH_LOCAL_RUNS", "5")
    settings = load_settings()
    assert (settings.home, settings.offline, settings.local_runs) == (tmp_path, True, 5)
    assert settings.hub_endpoint == ("http://a.example", "http://b.example")
    assert load_settings(local_runs=7).local_runs == 7


def test_lists_are_comma_separated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARGAH_HUB_ENDPOINT", "http://a.example/ , http://b.example,")
    monkeypatch.setenv("KARGAH_CORS_ORIGINS", "http://x.example")
    settings = load_settings(home=tmp_path)
    assert settings.hub_endpoint == ("http://a.example", "http://b.example")
    assert settings.cors_origins == ("http://x.example",)


def test_an_empty_variable_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compose file passes empty strings for what nobody set."""
    for name in ("TOKEN", "CATALOG", "DATABASE_URL", "OFFLINE", "HUB_ENDPOINT"):
        monkeypatch.setenv(f"KARGAH_{name}", "")
    settings = load_settings(home=tmp_path)
    assert (settings.token, settings.catalog, settings.offline) == (None, None, False)
    assert settings.hub_endpoint == (PUBLIC_HUB,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOCAL_RUNS", "many"),
        ("LOCAL_RUNS", "-1"),
        ("OFFLINE", "perhaps"),
        ("HUB_ENDPOINT", "ftp://a.example"),
        ("EXECUTOR", "cloud"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("DATABASE_URL", "not a url"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"KARGAH_{name}", value)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(home=tmp_path)
    assert refused.value.params["name"] == f"KARGAH_{name}"
    for language in ("fa", "en"):
        assert f"KARGAH_{name}" in refused.value.message(language)


@pytest.mark.parametrize(
    ("text", "named"),
    [("offline = maybe", "kargah.toml"), ("ofline = true", "ofline"), ('local_runs = "x"', "KARGAH_LOCAL_RUNS")],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "kargah.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(home=tmp_path)
    assert named in refused.value.params["name"]


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    shown: Any = load_settings(home=tmp_path, token="t0ps3cret", hub_token="hf_s3cret")
    assert "s3cret" not in repr(shown)
