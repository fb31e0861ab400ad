"""The hub's endpoints and the outcome of testing them, as the API and the command tell of it."""

from typing import Any

from kargah.assets.catalog import Catalog
from kargah.ground.settings import PUBLIC_HUB, Settings
from kargah.hub.reachability import Reached, try_configured
from kargah.text.languages import Language


def described(settings: Settings) -> list[dict[str, Any]]:
    """Every configured endpoint as the API tells of it."""
    return [
        {
            "number": number,
            "url": url,
            "hasToken": settings.token_of(url) is not None,
            "isDefault": url == PUBLIC_HUB,
        }
        for number, url in enumerate(settings.hub_endpoint, start=1)
    ]


def outcomes(
    settings: Settings, repo_ids: list[str], language: Language, url: str | None = None
) -> list[dict[str, Any]]:
    """Every endpoint, or the one at `url`, after its test. Raises `Offline`, `ValidationFailed`."""
    reached = {one.endpoint.url: one for one in try_configured(settings, repo_ids, url)}
    return [
        {**about, **_outcome(reached[about["url"]], language)}
        for about in described(settings)
        if about["url"] in reached
    ]


def repo_ids_of(catalog: Catalog) -> list[str]:
    """Approved models that anybody may fetch: hubs should have them."""
    return [entry.repo_id for entry in catalog.of_kind("model") if entry.source == "HuggingFace" and not entry.gated]


def _outcome(reached: Reached, language: Language) -> dict[str, Any]:
    return {
        "ok": reached.is_usable,
        "failedStep": reached.failed_step,
        "reason": reached.reason,
        "message": reached.message(language),
        "usesProxy": reached.facts.get("usesProxy"),
        "latencyMs": reached.latency_ms,
        "bytesPerSecond": reached.bytes_per_second,
    }
