"""What the shell offers for an argument: ids from the server, which is asked for half a second and never waited for.

Every verb names what completes its arguments, and few are completed: what asks is loaded when it asks.
"""

from collections.abc import Callable
from typing import Any

from kargah.ground.errors import KargahError
from kargah.text.languages import LANGUAGES
from kargah.text.messages import catalog

Offer = list[tuple[str, str]]
"""What may stand there, each with a word about it."""

LIMIT_SECONDS = 0.5
MOST = 200


def runs(incomplete: str) -> Offer:
    """Ids of the newest runs."""
    return _ids("/api/analysis/training/jobs", incomplete, lambda run: f"{run['name']} ({run['status']})")


def assets(incomplete: str) -> Offer:
    """Ids of everything held."""
    return _ids("/api/assets", incomplete, lambda asset: asset["name"])


def checkpoints(incomplete: str) -> Offer:
    """Ids of checkpoints."""
    return _ids("/api/training/assets", incomplete, lambda asset: asset["name"])


def datasets(incomplete: str) -> Offer:
    """Ids of the data sets held."""
    return _ids("/api/datasets", incomplete, lambda asset: asset["name"])


def models(incomplete: str) -> Offer:
    """Ids that a run may start from: models, then checkpoints."""
    every = [*_asked("/api/assets", kind="model"), *_asked("/api/training/assets")]
    return _beginning(every, incomplete, lambda asset: asset["name"])


def approved(incomplete: str) -> Offer:
    """Ids in the catalog."""
    every = [*_asked("/api/catalog/models"), *_asked("/api/catalog/datasets")]
    return _beginning(every, incomplete, lambda entry: entry["name"])


def setting_names(incomplete: str) -> list[str]:
    """Names of settings."""
    from kargah.ground.settings import Settings

    return [name for name in Settings.model_fields if name.startswith(incomplete)]


def error_codes(incomplete: str) -> list[str]:
    """Codes that `kargah explain` knows."""
    return [code for code in explained_codes() if code.startswith(incomplete)]


def explained_codes() -> list[str]:
    """Every code with a cause and a cure, sorted."""
    keys = (key.split(".") for key in catalog(LANGUAGES[0]) if key.startswith("book."))
    return sorted(parts[1] for parts in keys if len(parts) == 3 and parts[2] == "cause")


def _ids(path: str, incomplete: str, about: Callable[[dict[str, Any]], str]) -> Offer:
    return _beginning(_asked(path, limit=MOST), incomplete, about)


def _beginning(every: list[dict[str, Any]], incomplete: str, about: Callable[[dict[str, Any]], str]) -> Offer:
    return [(str(one["id"]), about(one)) for one in every if str(one["id"]).startswith(incomplete)][:MOST]


def _asked(path: str, **params: Any) -> list[dict[str, Any]]:
    import httpx

    from kargah.ground.settings import load_settings

    try:
        settings = load_settings()
        token = settings.token.get_secret_value() if settings.token else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(base_url=settings.url, trust_env=False, timeout=LIMIT_SECONDS) as http:
            data = http.get(path, params=params, headers=headers).json().get("data", [])
    except (httpx.HTTPError, httpx.InvalidURL, KargahError, ValueError, AttributeError):
        # Whoever presses Tab wants an offer or nothing: a complaint would stand in the middle of the command line.
        return []
    return data if isinstance(data, list) else []
