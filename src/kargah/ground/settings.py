"""Settings, from the environment (`KARGAH_…`) and from `kargah.toml` in `KARGAH_HOME`; the environment wins."""

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from kargah.ground.errors import SettingsInvalid

PUBLIC_HUB = "https://huggingface.co"
CONFIG_FILE = "kargah.toml"
SECRET_VARIABLES = ("KARGAH_TOKEN", "KARGAH_HUB_TOKEN", "KARGAH_HUB_TOKENS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""What no child process inherits and no report quotes."""


class Settings(BaseSettings):
    """Everything that can be set. Each field is `KARGAH_<NAME>` in the environment, `<name>` in `kargah.toml`."""

    model_config = SettingsConfigDict(env_prefix="KARGAH_", env_ignore_empty=True, extra="ignore", frozen=True)

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("kargah")))
    """Everything that is kept."""
    hub_endpoint: Annotated[tuple[str, ...], NoDecode] = (PUBLIC_HUB,)
    """Hub endpoints, tried in order."""
    hub_token: SecretStr | None = None
    """A token for the first hub endpoint; never sent anywhere else."""
    hub_tokens: Annotated[dict[str, SecretStr] | None, NoDecode] = None
    """A token for each endpoint by its address, each sent to that one's origin alone: a JSON object, or
    `address=token` pairs between commas. For the first endpoint it goes before `hub_token`."""
    allow_private_redirects: bool = False
    """Whether a public hub may send downloads on to a private or loopback address."""
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
    run_memory_bytes: int = Field(default=0, ge=0)
    """Memory that all runs together may take; 0 means 85 % of the machine's, or of the container's."""
    hung_after_seconds: int = Field(default=600, ge=0, le=604_800)
    """A training program that lives but has said nothing for so long counts as hung; 0 means never."""
    hung_runs: Literal["flag", "restart"] = "flag"
    """What is done about a hung program: say so, or end it and go on from the last checkpoint."""
    token: SecretStr | None = None
    """What a request must carry as a bearer token; required for any address but loopback."""
    url: str = "http://127.0.0.1:8765"
    """Where the command `kargah` finds the server."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Foreign origins (and hosts) that may call the API."""
    max_upload_bytes: int = Field(default=2_000_000_000, ge=1)
    """Largest upload of a data set."""
    max_import_bytes: int = Field(default=100_000_000_000, ge=1)
    """Largest import of an approved model or data set, packed and unpacked."""
    parallel_downloads: int = Field(default=2, ge=1, le=32)
    """Downloads under way at once; the others wait their turn."""
    connections_per_host: int = Field(default=16, ge=1, le=64)
    """Connections of all downloads together to one host."""
    download_bytes_per_second: int = Field(default=0, ge=0)
    """What all downloads together may bring in a second; 0 is no limit."""
    keep_parts_days: int = Field(default=14, ge=0, le=3650)
    """How long the bytes of a download that ended without arriving are kept; 0 keeps them to the next sweep."""

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
        if any("@" in urlsplit(part).netloc for part in value):
            # It would stand in lists, logs and errors.
            raise ValueError("must hold no user and no password; a token belongs into KARGAH_HUB_TOKENS")
        return value

    @field_validator("hub_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> Any:
        given = _read_tokens(value) if isinstance(value, str) else value
        if not isinstance(given, dict):
            return given
        # A value that is no text is refused by the field's type; nothing quotes it.
        return {
            url.strip().rstrip("/"): token.strip() if isinstance(token, str) else token for url, token in given.items()
        }

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
            # Only here: most commands read the settings for the server's address, and the database's room is large.
            from sqlalchemy import make_url
            from sqlalchemy.exc import ArgumentError

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

    def token_of(self, url: str) -> str | None:
        """The token that belongs to a configured endpoint."""
        token = (self.hub_tokens or {}).get(url)
        if token is None and url == self.hub_endpoint[0]:
            token = self.hub_token
        return token.get_secret_value() or None if token is not None else None

    @property
    def secrets(self) -> set[str]:
        """Every token, for whoever must leave them out of what is shown."""
        tokens = [self.token, self.hub_token, *(self.hub_tokens or {}).values()]
        return {token.get_secret_value() for token in tokens if token is not None}


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `overrides` win over all. Raises `SettingsInvalid`, naming the setting."""
    try:
        settings = Settings(**overrides)
        file = settings.home / CONFIG_FILE
        if file.is_file():
            written = _read_file(file)
            environment = {name for name in written if os.environ.get(f"KARGAH_{name.upper()}")}
            settings = Settings(**{**{k: v for k, v in written.items() if k not in environment}, **overrides})
        # Only now: endpoints may stand in the file and their tokens in the environment.
        _check_tokens(settings)
        return settings
    except ValidationError as error:
        first = error.errors()[0]
        name = "KARGAH_" + ".".join(str(part) for part in first["loc"]).upper()
        raise SettingsInvalid(name=name, problem=first["msg"]) from error


def _read_tokens(text: str) -> dict[str, Any]:
    """Tokens by address. Raises `ValueError`, which quotes none of it."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            raise ValueError("must be a JSON object, or address=token pairs between commas") from None
        return dict(found)
    pairs = [pair.strip() for pair in text.split(",") if pair.strip()]
    found = {}
    for number, pair in enumerate(pairs, start=1):
        url, equals, token = pair.partition("=")
        if not equals or not url.strip() or not token.strip():
            raise ValueError(f"entry {number} is no address=token pair")
        found[url.strip()] = token.strip()
    return found


def _check_tokens(settings: Settings) -> None:
    """Refuse a token that belongs to no endpoint: it would never be sent, and its owner should know."""
    for url in settings.hub_tokens or {}:
        if url not in settings.hub_endpoint:
            # Somebody may have written a token in its place.
            named = url if url.startswith(("http://", "https://")) and "@" not in url else "an address"
            raise SettingsInvalid(name="KARGAH_HUB_TOKENS", problem=f"{named} is not one of KARGAH_HUB_ENDPOINT")


def _read_file(file: Path) -> dict[str, Any]:
    try:
        written = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsInvalid(name=str(file), problem=str(error)) from error
    unknown = sorted(set(written) - set(Settings.model_fields))
    if unknown:
        raise SettingsInvalid(name=f"{file}: {unknown[0]}", problem="no such setting")
    return written
