"""Settings, from the environment (`KARGAH_…`) and from `kargah.toml` in `KARGAH_HOME`; the environment wins."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from kargah.ground.errors import SettingsInvalid

PUBLIC_HUB = "https://huggingface.co"
CONFIG_FILE = "kargah.toml"


class Settings(BaseSettings):
    """Everything that can be set. Each field is `KARGAH_<NAME>` in the environment, `<name>` in `kargah.toml`."""

    model_config = SettingsConfigDict(env_prefix="KARGAH_", env_ignore_empty=True, extra="ignore", frozen=True)

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("kargah")))
    """Everything that is kept."""
    hub_endpoint: Annotated[tuple[str, ...], NoDecode] = (PUBLIC_HUB,)
    """Hub endpoints, tried in order."""
    hub_token: SecretStr | None = None
    """A token for the first hub endpoint; never sent anywhere else."""
    catalog: Path | None = None
    """A site's own catalog file, which adds or removes entries."""
    database_url: str | None = None
    """Default: SQLite in `home`."""
    storage_url: str | None = None
    """Default: `home`."""
    offline: bool = False
    """No socket leaves the machine."""
    executor: Literal["local"] = "local"
    local_runs: int = Field(default=0, ge=0, le=64)
    """Runs at once on this machine; 0 means one a GPU, one without."""
    token: SecretStr | None = None
    """What a request must carry as a bearer token; required for any address but loopback."""
    url: str = "http://127.0.0.1:8765"
    """Where the command `kargah` finds the server."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Foreign origins (and hosts) that may call the API."""
    max_upload_bytes: int = Field(default=2_000_000_000, ge=1)
    """Largest upload of a data set."""

    @field_validator("hub_endpoint", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip().rstrip("/") for part in parts if part.strip())

    @field_validator("hub_endpoint")
    @classmethod
    def _http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(part.startswith(("http://", "https://")) for part in value):
            raise ValueError("must be http:// or https:// addresses")
        return value

    @field_validator("storage_url")
    @classmethod
    def _own_storage(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("only the data directory (KARGAH_HOME) is supported; leave it unset")
        return value

    @field_validator("database_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                make_url(value)
            except ArgumentError as error:
                raise ValueError("must be the URL of a database") from error
        return value

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    @property
    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'kargah.db'}"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `overrides` win over all. Raises `SettingsInvalid`, naming the setting."""
    try:
        settings = Settings(**overrides)
        file = settings.home / CONFIG_FILE
        if not file.is_file():
            return settings
        written = _read_file(file)
        environment = {name for name in written if os.environ.get(f"KARGAH_{name.upper()}")}
        return Settings(**{**{k: v for k, v in written.items() if k not in environment}, **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        name = "KARGAH_" + ".".join(str(part) for part in first["loc"]).upper()
        raise SettingsInvalid(name=name, problem=first["msg"]) from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        written = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsInvalid(name=str(file), problem=str(error)) from error
    unknown = sorted(set(written) - set(Settings.model_fields))
    if unknown:
        raise SettingsInvalid(name=f"{file}: {unknown[0]}", problem="no such setting")
    return written
