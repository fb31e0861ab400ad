"""Requests for approval: made, counted, listed, declined, withdrawn; approved by the catalog alone."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from living import BERT, NOBODY
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.assets.approvals import TRANSITIONS, Approvals, Status
from kargah.assets.catalog import Catalog, Entry
from kargah.assets.models import ApprovalRequestRow
from kargah.ground.ids import new_id, now
from kargah.ground.settings import Settings

PATH = "/api/catalog/requests"
NEEDED = "lab/needed"
SITE = """
[[{kind}s]]
id = "{id}"
huggingfaceId = "{hub_id}"
name = "needed"
description.fa = "شرح"
description.en = "about"
"""


def _ask(api: TestClient, id: str = NEEDED, kind: str = "model", **more: Any) -> dict[str, Any]:
    answer = api.post(PATH, json={"id": id, "kind": kind, **more})
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json()["data"])


def _listed(api: TestClient, **params: Any) -> list[dict[str, Any]]:
    answer = api.get(PATH, params=params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def _refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


def _events(platform: Platform) -> list[tuple[str, str, int]]:
    found = [event for event in platform.events.after(["system"], 0) if event.type == "approval"]
    return [(event.data["id"], event.data["status"], event.data["numAsked"]) for event in found]


def test_a_request_is_made_and_told_of(api: TestClient, platform: Platform) -> None:
    answer = api.post(PATH, json={"id": NEEDED, "kind": "model", "reason": "  برای درمانگاه‌ها  "})
    assert answer.status_code == 201
    made = answer.json()["data"]
    assert re.fullmatch("[0-9a-f]{32}", made.pop("requestId"))
    assert made.pop("createdAt").endswith("Z")
    assert made == {
        "id": NEEDED,
        "kind": "model",
        "reason": "برای درمانگاه‌ها",
        "status": "open",
        "note": None,
        "numAsked": 1,
        "decidedAt": None,
    }
    assert _events(platform) == [(NEEDED, "open", 1)]


def test_asked_again_it_is_the_same_request_and_counts(api: TestClient, platform: Platform) -> None:
    first = _ask(api)
    answer = api.post(PATH, json={"id": NEEDED, "kind": "model", "reason": "now with a reason"})
    assert answer.status_code == 200
    assert answer.json()["data"] == {**first, "numAsked": 2, "reason": "now with a reason"}
    assert _ask(api, reason="another")["reason"] == "now with a reason"
    assert _ask(api, kind="dataset")["requestId"] != first["requestId"]
    assert len(_listed(api)) == 2
    assert _events(platform)[:2] == [(NEEDED, "open", 1), (NEEDED, "open", 2)]


def test_what_is_approved_needs_no_request(api: TestClient) -> None:
    for language, word in (("fa", "کاتالوگ"), ("en", "catalog")):
        body = {"id": BERT, "kind": "model"}
        answer = api.post(PATH, json=body, headers={"Accept-Language": language})
        assert _refusal(answer) == (409, "ALREADY_APPROVED")
        assert word in answer.json()["message"]
        assert answer.json()["details"] == {"id": BERT, "kind": "model"}
    assert _ask(api, BERT, "dataset")["status"] == "open"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"id": "../x", "kind": "model"}, "id"),
        ({"id": "a/b/c", "kind": "model"}, "id"),
        ({"id": "", "kind": "model"}, "id"),
        ({"id": "a" * 161, "kind": "model"}, "id"),
        ({"id": "شناسه", "kind": "model"}, "id"),
        ({"kind": "model"}, "id"),
        ({"id": NEEDED}, "kind"),
        ({"id": NEEDED, "kind": "checkpoint"}, "kind"),
        ({"id": NEEDED, "kind": "model", "reason": "x" * 2001}, "reason"),
        ({"id": NEEDED, "kind": "model", "reason": "a\x00b"}, "reason"),
        ({"id": NEEDED, "kind": "model", "reason": 7}, "reason"),
        ({"id": NEEDED, "kind": "model", "why": "x"}, "why"),
    ],
)
def test_a_malformed_request(api: TestClient, body: dict[str, Any], field: str) -> None:
    answer = api.post(PATH, json=body)
    assert _refusal(answer) == (400, "VALIDATION_FAILED")
    assert [problem["field"] for problem in answer.json()["details"]] == [field]
    assert _listed(api) == []


def test_the_longest_reason_is_kept_whole(api: TestClient) -> None:
    assert _ask(api, reason="ن" * 2000)["reason"] == "ن" * 2000
    assert _ask(api, "lab/second", reason="   ")["reason"] is None


def test_the_list_is_paged_newest_first_and_filtered(api: TestClient) -> None:
    made = [_ask(api, f"lab/needed-{number}")["requestId"] for number in range(5)]
    api.post(f"{PATH}/{made[2]}/decline", json={})
    seen: list[dict[str, Any]] = []
    cursor: str | None = None
    for expected in (2, 2, 1):
        answer = api.get(PATH, params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        assert len(answer["data"]) == expected
        assert answer["page"]["total"] == 5
        seen += answer["data"]
        cursor = answer["page"]["next"]
    assert cursor is None
    assert [one["requestId"] for one in seen] == made[::-1]
    assert all(later["createdAt"] >= earlier["createdAt"] for later, earlier in pairwise(seen))
    assert [one["requestId"] for one in _listed(api, status="declined")] == [made[2]]
    assert len(_listed(api, status="open")) == 4
    assert _listed(api, status="approved") == []
    for params in ({"status": "lost"}, {"limit": 0}, {"limit": 1001}, {"cursor": "x"}, {"cursor": "WzEsMl0"}):
        assert _refusal(api.get(PATH, params=params)) == (400, "VALIDATION_FAILED"), params


def test_declining_is_once_and_lets_ask_again(api: TestClient, platform: Platform) -> None:
    first = _ask(api)
    place = f"{PATH}/{first['requestId']}"
    declined = api.post(f"{place}/decline", json={"note": " پروانه‌اش اجازه نمی‌دهد "}).json()["data"]
    assert (declined["status"], declined["note"]) == ("declined", "پروانه‌اش اجازه نمی‌دهد")
    assert declined["decidedAt"].endswith("Z")
    assert _refusal(api.post(f"{place}/decline")) == (409, "INVALID_STATE")
    assert _refusal(api.delete(place)) == (409, "INVALID_STATE")
    second = _ask(api)
    assert second["requestId"] != first["requestId"]
    assert second["numAsked"] == 1
    assert api.post(f"{PATH}/{second['requestId']}/decline").json()["data"]["note"] is None
    assert [status for _, status, _ in _events(platform)] == ["open", "declined", "open", "declined"]


def test_withdrawing_forgets(api: TestClient, platform: Platform) -> None:
    made = _ask(api)
    answer = api.delete(f"{PATH}/{made['requestId']}")
    assert answer.json()["data"] == {"requestId": made["requestId"], "id": NEEDED, "kind": "model"}
    assert _listed(api) == []
    assert _refusal(api.delete(f"{PATH}/{made['requestId']}")) == (404, "APPROVAL_REQUEST_NOT_FOUND")
    assert _events(platform)[-1][1] == "withdrawn"


def test_a_request_that_is_not_there(api: TestClient) -> None:
    assert _refusal(api.post(f"{PATH}/{new_id()}/decline")) == (404, "APPROVAL_REQUEST_NOT_FOUND")
    assert _refusal(api.post(f"{PATH}/x/decline", json={"note": "x" * 2001})) == (400, "VALIDATION_FAILED")
    assert api.get(f"{PATH}/{new_id()}").status_code == 405


def test_nobody_approves_over_http_and_the_gate_stays(api: TestClient) -> None:
    made = _ask(api)
    assert api.post(f"{PATH}/{made['requestId']}/approve").status_code == 404
    refused = api.post("/api/models/download/start", json={"modelId": NEEDED})
    assert _refusal(refused) == (400, "MODEL_NOT_ALLOWED")
    _ask(api, kind="dataset")
    refused = api.post("/api/datasets/download/start", json={"datasetId": NEEDED})
    assert _refusal(refused) == (400, "DATASET_NOT_ALLOWED")


def test_the_catalog_approves_at_the_next_start(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text("", encoding="utf-8")
    settings = Settings(home=tmp_path / "home", catalog=site, hub_endpoint=(NOBODY,))
    with TestClient(Application(Platform(settings)).asgi, base_url="http://127.0.0.1") as api:
        by_id, by_hub_id, declined = (_ask(api, f"lab/{name}") for name in ("by-id", "by-hub-id", "declined"))
        same_id_other_kind = _ask(api, "lab/by-id", "dataset")
        api.post(f"{PATH}/{declined['requestId']}/decline", json={"note": "not yet"})
    text = SITE.format(kind="model", id="lab/by-id", hub_id="lab/by-id")
    text += SITE.format(kind="model", id="ours", hub_id="lab/by-hub-id")
    text += SITE.format(kind="model", id="lab/declined", hub_id="lab/declined")
    site.write_text(text, encoding="utf-8")
    application = Application(Platform(settings))
    with TestClient(application.asgi, base_url="http://127.0.0.1") as api:
        found = {one["requestId"]: one for one in _listed(api)}
        for asked in (by_id, by_hub_id, declined):
            assert found[asked["requestId"]]["status"] == "approved"
            assert found[asked["requestId"]]["decidedAt"] > asked["createdAt"]
        assert found[declined["requestId"]]["note"] == "not yet"
        assert found[same_id_other_kind["requestId"]]["status"] == "open"
        assert len(_listed(api, status="approved")) == 3
        place = f"{PATH}/{by_id['requestId']}"
        assert _refusal(api.post(f"{place}/decline")) == (409, "INVALID_STATE")
        assert _refusal(api.delete(place)) == (409, "INVALID_STATE")
        decided = [status for _, status, _ in _events(application.platform)][-3:]
        assert decided == ["approved"] * 3
        assert application.platform.approvals.settle() == 0


def test_an_entry_that_leaves_the_catalog_can_be_asked_for_again(api: TestClient, platform: Platform) -> None:
    made = _ask(api)
    about = {"fa": "شرح", "en": "about"}
    entry = Entry(id=NEEDED, huggingface_id=NEEDED, kind="model", name="x", description=about)  # type: ignore[arg-type]
    assert Approvals(platform.database, platform.events, Catalog((entry,)), platform.registry.records).settle() == 1
    again = _ask(api)
    assert again["requestId"] != made["requestId"]
    assert sorted(one["status"] for one in _listed(api)) == ["approved", "open"]


def test_the_transitions() -> None:
    allowed = {(before, after) for before, following in TRANSITIONS.items() for after in following}
    assert set(TRANSITIONS) == set(Status)
    assert allowed == {
        (Status.OPEN, Status.APPROVED),
        (Status.OPEN, Status.DECLINED),
        (Status.DECLINED, Status.APPROVED),
    }


def test_the_database_keeps_one_open_request_for_an_asset(platform: Platform) -> None:
    def add(status: str) -> None:
        row = ApprovalRequestRow(id=new_id(), kind="model", asset_id=NEEDED, status=status, num_asked=1)
        row.created_at = now()
        with platform.database.write() as session:
            session.add(row)

    for status in ("open", "declined", "declined", "approved"):
        add(status)
    with pytest.raises(IntegrityError):
        add("open")
    with platform.database.read() as session:
        assert len(session.scalars(select(ApprovalRequestRow)).all()) == 4


def test_every_route_is_documented(api: TestClient) -> None:
    document = api.get("/api/openapi.json").json()
    of_list, decline, one = (
        document["paths"][f"{PATH}{rest}"] for rest in ("", "/{request_id}/decline", "/{request_id}")
    )
    assert set(of_list["post"]["responses"]) >= {"200", "201", "400", "409"}
    assert "`ALREADY_APPROVED`" in of_list["post"]["responses"]["409"]["description"]
    assert set(of_list["get"]["responses"]) >= {"200", "400"}
    for operation in (decline["post"], one["delete"]):
        assert "`APPROVAL_REQUEST_NOT_FOUND`" in operation["responses"]["404"]["description"]
        assert "`INVALID_STATE`" in operation["responses"]["409"]["description"]
    assert set(document["components"]["schemas"]["ApprovalRequest"]["properties"]) >= {"requestId", "numAsked"}
