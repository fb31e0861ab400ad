"""Each hub endpoint of the settings as `kargah.hub.reachability` finds it. No host name enters the facts."""

from kargah.app.doctor.findings import Examination, Facts
from kargah.ground.settings import Settings
from kargah.hub.endpoint import configured_endpoints
from kargah.hub.proxies import proxies_in_use
from kargah.hub.reachability import Reached, try_endpoint
from kargah.text.languages import Language
from kargah.text.sizes import human_size


def examine_hubs(settings: Settings, language: Language, repo_ids: list[str]) -> Examination:
    """Every endpoint in order. `repo_ids` are models whose files may be asked for. Offline, no socket is opened."""
    found = Examination(language)
    found.facts = {"isOffline": settings.offline, "proxies": proxies_in_use(), "endpoints": []}
    if settings.offline:
        found.find("hub", "ok", "hub.offline")
        return found
    for number, endpoint in enumerate(configured_endpoints(settings), start=1):
        reached = try_endpoint(endpoint, repo_ids, allow_private_redirects=settings.allow_private_redirects)
        found.facts["endpoints"].append({"number": number, **hub_facts(reached)})
        _tell(found, number, reached)
    return found


def hub_facts(reached: Reached) -> Facts:
    """The facts of one endpoint; `failedStep` and `reason` are None when every step went well."""
    return {**reached.facts, "failedStep": reached.failed_step, "reason": reached.reason}


def _tell(found: Examination, number: int, reached: Reached) -> None:
    if reached.failed_step is not None:
        found.find("hub", "warning", f"hub.{reached.failed_step}", number=number, reason=reached.reason)
        return
    latency = f"{reached.latency_ms:.0f} ms"
    if reached.bytes_per_second is None:
        found.find("hub", "ok", "hub.ok", number=number, latency=latency)
    else:
        speed = f"{human_size(reached.bytes_per_second)}/s"
        found.find("hub", "ok", "hub.okSpeed", number=number, latency=latency, speed=speed)
