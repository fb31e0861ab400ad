"""Blocks for the site's catalog file: real facts, comments for the rest, and nothing of others' text comes alive."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_hub import Said, ScriptedHub
from workshop import SMALL, RunningHub

from kargah.assets.catalog import Kind, load_catalog, read_catalog
from kargah.assets.catalog_rules import examine_rules
from kargah.hub.catalog_draft import Facts, Looked, draft
from kargah.hub.endpoint import Endpoint

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def scripted() -> Iterator[ScriptedHub]:
    with ScriptedHub() as running:
        yield running


def _draft(kind: Kind, asked_id: str, *urls: str, notes: tuple[str, ...] = ()) -> str:
    facts = Facts([Endpoint(url) for url in urls], SMALL)
    try:
        return draft(kind, asked_id, facts.look_up(kind, asked_id), notes, "en")
    finally:
        facts.close()


def _filled(text: str) -> str:
    """The block after a person wrote the descriptions."""
    return re.sub(r'# (description\.\w+) = ""  # .*', r'\1 = "said"', text)


def _only(text: str, table: str = "models") -> dict[str, Any]:
    (entry,) = tomllib.loads(text)[table]
    return dict(entry)


def test_the_facts_of_a_model(scripted: ScriptedHub, tmp_path: Path) -> None:
    siblings = [
        {"rfilename": "config.json", "size": 10, "blobId": "1" * 40},
        {"rfilename": "model.safetensors", "size": 500, "blobId": "2" * 40, "lfs": {"sha256": "3" * 64, "size": 500}},
        {"rfilename": "tf_model.h5", "size": 900, "blobId": "4" * 40, "lfs": {"sha256": "5" * 64, "size": 900}},
    ]
    scripted.has(
        "org/it",
        siblings=siblings,
        pipeline_tag="text-generation",
        tags=["conversational", "license:mit"],
        cardData={"license": "apache-2.0", "language": ["fa", "multilingual", "persian"]},
        safetensors={"total": 1234, "parameters": {"F32": 1234}},
        config={"model_type": "bert"},
        gated="auto",
    )
    text = _draft("model", "org/it", scripted.url, notes=("for the clinic",))
    assert "# for the clinic\n[[models]]" in text
    assert scripted.asked()[0].query == "blobs=true"
    entry = _only(text)
    assert entry == {
        "id": "org/it",
        "huggingfaceId": "org/it",
        "name": "it",
        "tasks": ["chat", "text-generation"],
        "languages": ["fa", "mul"],
        "licence": "apache-2.0",
        "revision": "a" * 40,
        "sizeBytes": 510,
        "parameters": 1234,
        "architecture": "bert",
        "gated": True,
    }
    site = tmp_path / "site.toml"
    site.write_text(text, encoding="utf-8")
    assert {(p.entry, p.field) for p in read_catalog(site).problems} == {("org/it", "description")}
    site.write_text(_filled(text), encoding="utf-8")
    made = load_catalog(site).require("model", "org/it")
    assert list(examine_rules(made, str(site))) == []


def test_the_facts_of_a_data_set_at_a_real_hub(hub: RunningHub, scripted: ScriptedHub, tmp_path: Path) -> None:
    hub.add("org/data", {"train.csv": b"text,label\nx,1\n"}, kind="datasets")
    text = _draft("dataset", "org/data", NOBODY, hub.url)
    entry = _only(text, "datasets")
    assert entry["sizeBytes"] == 15
    assert len(entry["revision"]) == 40
    assert "not known, fill in or leave out: tasks, languages, licence" in text
    assert "# columns = { text" in text
    site = tmp_path / "site.toml"
    site.write_text(_filled(text), encoding="utf-8")
    assert load_catalog(site).require("dataset", "org/data").source == "HuggingFace"
    card = {"pretty_name": "داده", "task_categories": ["text-classification"], "task_ids": ["sentiment-scoring"]}
    scripted.has("org/other", "dataset", cardData=card, siblings=[{"rfilename": "x.py"}], tags=["language:fa"])
    text = _draft("dataset", "org/other", scripted.url)
    entry = _only(text, "datasets")
    assert (entry["name"], entry["tasks"], entry["languages"]) == ("داده", ["text-classification"], ["fa"])
    assert "# it only loads with code" in text


def test_what_others_wrote_stays_a_comment_or_a_string(scripted: ScriptedHub) -> None:
    evil = 'x"\n[[models]]\nid = "evil/model"\r\nremove = ["a"]\u2028[[datasets]]\x00\x1b[2J\x85id = 1'
    scripted.has("org/it", cardData={"pretty_name": evil, "license": evil, "language": evil, "task_categories": evil})
    text = _draft("model", "org/it", scripted.url, notes=(evil,))
    assert list(tomllib.loads(text)) == ["models"]
    assert _only(text)["id"] == "org/it"
    assert "\x1b" not in text
    text = _draft("model", "org/it", notes=(evil,))
    assert list(tomllib.loads(text)) == ["models"]
    assert set(_only(text)) == {"id", "huggingfaceId", "name"}


def test_a_moved_repository_keeps_the_id_that_was_asked_for(scripted: ScriptedHub) -> None:
    scripted.say("/api/models/org/it", Said(307, "", {"Location": "/api/models/new-org/it"}))
    scripted.has("new-org/it", siblings=[{"rfilename": "model.safetensors", "size": 5}])
    text = _draft("model", "org/it", scripted.url)
    entry = _only(text)
    assert (entry["id"], entry["huggingfaceId"]) == ("org/it", "new-org/it")
    assert entry["sizeBytes"] == 5
    assert scripted.asked()[-1].query == "blobs=true"
    assert "# the repository moved" in text


def test_why_there_are_no_facts(scripted: ScriptedHub) -> None:
    assert "work offline" in _draft("model", "org/it")
    assert "could be reached" in _draft("model", "org/it", NOBODY)
    # That one hub has no such repository says more than that another one is not there.
    for urls in ((NOBODY, scripted.url), (scripted.url, NOBODY)):
        assert "WARNING: the hub has no such repository" in _draft("model", "org/it", *urls)
    for code in ("HUB_RATE_LIMITED", "HUB_UNAUTHORIZED", "NOT_A_HUB", "REPO_GATED", "REPO_DISABLED"):
        for language in ("fa", "en"):
            assert tomllib.loads(draft("model", "org/it", Looked(None, code), (), language))["models"]
