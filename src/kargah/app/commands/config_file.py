"""`kargah.toml`: read and written with its comments and order, whole or not at all, and never with what cannot be read.

What stands in it is checked by the settings themselves before a byte is written.
"""

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import SecretStr, ValidationError
from tomlkit.exceptions import ParseError

from kargah.ground.errors import SettingsInvalid
from kargah.ground.settings import CONFIG_FILE, Settings

ONLY_BY_ENVIRONMENT = frozenset({"home"})
"""Settings that the file cannot hold, for it is found by them."""

NO_ENVIRONMENT = "NOT_FROM_THE_ENVIRONMENT_"
PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644


class ConfigFile:
    """The settings file of a data directory."""

    def __init__(self, home: Path) -> None:
        self.path = home / CONFIG_FILE

    def values(self) -> dict[str, Any]:
        """What stands in it; nothing when there is no file. Raises `SettingsInvalid`."""
        return self._read().unwrap()

    def put(self, name: str, value: str) -> None:
        """Write one setting. Raises `SettingsInvalid` for what cannot stand there, `OSError`."""
        document = self._read()
        document[name] = _plain(getattr(_checked({**document.unwrap(), name: value}), name))
        self._write(document)

    def remove(self, name: str) -> bool:
        """Take one setting out. Returns whether it stood there. Raises `SettingsInvalid`, `OSError`."""
        document = self._read()
        if name not in document:
            return False
        del document[name]
        self._write(document)
        return True

    def _read(self) -> tomlkit.TOMLDocument:
        try:
            return tomlkit.parse(self.path.read_bytes().decode("utf-8"))
        except FileNotFoundError:
            return tomlkit.document()
        except (ParseError, UnicodeDecodeError) as error:
            raise SettingsInvalid(name=str(self.path), problem=str(error)) from error

    def _write(self, document: tomlkit.TOMLDocument) -> None:
        # A link stays one: its target is replaced.
        target = self.path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else PUBLIC_MODE
        if any(_holds_secret(name, value) for name, value in document.unwrap().items()):
            mode &= PRIVATE_MODE
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{CONFIG_FILE}.")
        try:
            with open(handle, "wb") as file:
                file.write(document.as_string().encode("utf-8"))
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
            raise


def home_directory() -> Path:
    """The data directory, known also when other settings cannot be read."""
    named = os.environ.get("KARGAH_HOME")
    return _checked({"home": named} if named else {}).home


def _checked(values: dict[str, Any]) -> Settings:
    """Settings with these values and defaults alone. Raises `SettingsInvalid`."""
    unknown = sorted(set(values) - set(Settings.model_fields))
    if unknown:
        raise SettingsInvalid(name=unknown[0], problem="no such setting")
    try:
        return Settings(_env_prefix=NO_ENVIRONMENT, **values)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsInvalid(name=".".join(map(str, first["loc"])), problem=first["msg"]) from error


def _plain(value: Any) -> Any:
    """A setting's value as TOML writes it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return str(value.expanduser().absolute()) if isinstance(value, Path) else value


def is_secret(name: str) -> bool:
    """Whether a setting is one that is never shown."""
    field = Settings.model_fields.get(name)
    return field is not None and _names_secret(field.annotation)


def _names_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_names_secret(inner) for inner in getattr(annotation, "__args__", ()))


def _holds_secret(name: str, value: Any) -> bool:
    if is_secret(name):
        return True
    return any(_has_password(one) for one in (value if isinstance(value, list) else [value]))


def _has_password(value: Any) -> bool:
    if not isinstance(value, str) or "://" not in value:
        return False
    # Only here: to read settings takes no database's room.
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return bool(make_url(value).password)
    except ArgumentError:
        return False
