"""`kargah catalog` by child processes: the list, the check with its exit codes, the schema, and requests."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from living import BERT, NOBODY, Living, MakeLiving
from scripted_hub import Said, ScriptedHub

ENTRY = """
[[{kind}s]]
id = "{id}"
huggingfaceId = "{id}"
name = "name"
description.fa = "شرح"
description.en = "about"
{more}
"""
Done = subprocess.CompletedProcess[str]


def _entry(id: str, more: str = "", kind: str = "model") -> str:
    return ENTRY.format(id=id, more=more, kind=kind)


@pytest.fixture
def scripted() -> Iterator[ScriptedHub]:
    with ScriptedHub() as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site.toml"


@pytest.fixture
def alone(tmp_path: Path, scripted: ScriptedHub) -> Living:
    """A command without a server beside it."""
    return Living(tmp_path / "home", hub_endpoint=scripted.url)


def _said(done: Done) -> dict[str, Any]:
    assert "Traceback" not in done.stderr, done.stderr
    return dict(json.loads(done.stdout))


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# ───────── the list ─────────


def test_the_list_as_it_always_was(live: Living) -> None:
    listed = json.loads(live.run("catalog", "--json").stdout)
    assert BERT in [entry["id"] for entry in listed]
    assert json.loads(live.run("catalog", "models", "--json").stdout) == listed
    for arguments in (
        ("datasets", "-q", "site/opinions", "--json"),
        ("-q", "site/opinions", "datasets", "--json"),
        ("--json", "--search", "site/opinions", "datasets"),
    ):
        found = json.loads(live.run("catalog", *arguments).stdout)
        assert [entry["id"] for entry in found] == ["site/opinions"]
    assert "weights that run a command" in _plain(live.run("catalog", "-q", "site/evil").stdout)
    assert live.run("catalog", "songs").returncode == 2
    assert live.run("catalog", "--help").returncode == 0


# ───────── check ─────────


def test_all_is_well(alone: Living, scripted: ScriptedHub, site: Path) -> None:
    scripted.has("org/it")
    scripted.has("org/data", "dataset", siblings=[{"rfilename": "train.csv"}])
    site.write_text(_entry("org/it") + _entry("org/data", kind="dataset"), encoding="utf-8")
    before = site.read_bytes()
    done = alone.run("catalog", "check", "--file", str(site))
    assert done.returncode == 0, done.stderr
    assert "org/it well" in _plain(done.stdout)
    assert "2 answered well" in done.stdout
    assert site.read_bytes() == before
    persian = alone.run("catalog", "check", "--file", str(site), lang="fa")
    assert "۲ درست" in persian.stdout
    said = _said(alone.run("catalog", "check", "--file", str(site), "--json"))
    assert [(e["id"], e["kind"], e["status"], e["file"]) for e in said["entries"]] == [
        ("org/it", "model", "ok", str(site)),
        ("org/data", "dataset", "ok", str(site)),
    ]
    assert said["summary"] == {
        "entries": 2,
        "problems": 0,
        "total": 2,
        "good": 2,
        "noted": 0,
        "bad": 0,
        "unreachable": 0,
    }
    assert not alone.home.exists()


def test_every_problem_of_every_entry_is_named(alone: Living, scripted: ScriptedHub, site: Path) -> None:
    scripted.has("site/good")
    text = 'modles = []\nremove = ["nobody/here"]\n'
    text += _entry("site/one", 'licens = "mit"\nparameters = 0\nfiles = { all = "x" }')
    text += _entry("site/good") + _entry("site/good")
    text += _entry("site/words", 'licence = "free"\nlanguages = ["fa", "persian"]\ntasks = ["magic", "magic"]')
    text += "[[datasets]]\nid = 'site/bare'\n"
    site.write_text(text, encoding="utf-8")
    done = alone.run("catalog", "check", "--file", str(site), "--json")
    assert done.returncode == 1
    said = _said(done)
    assert {(p["entry"], p["field"]) for p in said["problems"]} == {
        ("-", "modles"),
        ("nobody/here", "remove"),
        ("site/one", "licens"),
        ("site/one", "parameters"),
        ("site/one", "files.all.[key]"),
        ("site/good", "id"),
        ("site/words", "licence"),
        ("site/words", "languages.1"),
        ("site/words", "tasks"),
        ("site/words", "tasks.0"),
        ("site/words", "tasks.1"),
        ("site/bare", "name"),
        ("site/bare", "description"),
        ("site/bare", "huggingfaceId"),
    }
    assert {p["file"] for p in said["problems"]} == {str(site)}
    assert [(e["id"], e["status"]) for e in said["entries"]] == [("site/good", "ok"), ("site/words", "vanished")]
    for language, word in (("en", "is not a language code"), ("fa", "کد زبان نیست")):
        shown = alone.run("catalog", "check", "--file", str(site), lang=language)
        assert shown.returncode == 1
        assert word in _plain(shown.stdout)
    persian = _said(alone.run("catalog", "check", "--file", str(site), "--json", lang="fa"))
    assert all(re.search("[آ-ی]", problem["problem"]) for problem in persian["problems"])


@pytest.mark.parametrize("text", ["models = [", "models = 3", None, b"# \xe9"])
def test_a_file_that_is_none(alone: Living, site: Path, text: str | bytes | None) -> None:
    if text is not None:
        site.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = alone.run("catalog", "check", "--file", str(site), "--json")
    assert done.returncode == 1
    (problem,) = _said(done)["problems"]
    assert problem["file"] == str(site)


def test_what_changed_at_the_hub_is_exit_code_1(alone: Living, scripted: ScriptedHub, site: Path) -> None:
    scripted.say("/api/models/org/old", Said(307, "", {"Location": "/api/models/org/new"}))
    scripted.has("org/new", tags=["license:mit"])
    scripted.has("org/pickled", siblings=[{"rfilename": "pytorch_model.bin"}])
    site.write_text(_entry("org/old") + _entry("org/gone") + _entry("org/pickled"), encoding="utf-8")
    done = alone.run("catalog", "check", "--file", str(site))
    assert done.returncode == 1
    assert "org/new" in done.stdout
    assert "org/gone vanished" in _plain(done.stdout)
    only = alone.run("catalog", "check", "--file", str(site), "--only", "org/pickled", "--json")
    assert only.returncode == 0
    assert [entry["status"] for entry in _said(only)["entries"]] == ["pickledWeights"]
    assert _said(only)["summary"]["noted"] == 1
    only = alone.run("catalog", "check", "--file", str(site), "--only", "org/old", "--only", "org/gone", "--json")
    assert [entry["status"] for entry in _said(only)["entries"]] == ["moved", "vanished"]
    assert _said(only)["entries"][0]["findings"][0]["params"] == {"newId": "org/new"}
    unknown = alone.run("catalog", "check", "--file", str(site), "--only", "org/other")
    assert unknown.returncode == 2
    assert "org/other" in unknown.stderr


def test_nobody_there_is_exit_code_4_and_one_that_answers_is_enough(
    alone: Living, scripted: ScriptedHub, site: Path
) -> None:
    scripted.has("org/it")
    site.write_text(_entry("org/it"), encoding="utf-8")
    nobody = alone.run("catalog", "check", "--file", str(site), "--json", KARGAH_HUB_ENDPOINT=NOBODY)
    assert nobody.returncode == 4
    (entry,) = _said(nobody)["entries"]
    assert entry["status"] == "unreachable"
    assert entry["findings"][0]["params"]["cause"] == "HUB_UNREACHABLE"
    assert "KARGAH_HUB_ENDPOINT" in nobody.stderr
    both = f"{NOBODY},{scripted.url}"
    done = alone.run("catalog", "check", "--file", str(site), "--json", KARGAH_HUB_ENDPOINT=both)
    assert done.returncode == 0
    assert [(e["endpoint"], e["status"]) for e in _said(done)["entries"]] == [
        (NOBODY, "unreachable"),
        (scripted.url, "ok"),
    ]
    assert scripted.url in alone.run("catalog", "check", "--file", str(site), KARGAH_HUB_ENDPOINT=both).stdout
    site.write_text(_entry("org/it", 'licence = "free"'), encoding="utf-8")
    assert alone.run("catalog", "check", "--file", str(site), KARGAH_HUB_ENDPOINT=NOBODY).returncode == 1


def test_offline_only_the_files_are_checked(alone: Living, scripted: ScriptedHub, site: Path) -> None:
    site.write_text(_entry("org/gone"), encoding="utf-8")
    done = alone.run("catalog", "check", "--file", str(site), KARGAH_OFFLINE="1")
    assert done.returncode == 0
    assert "offline" in done.stdout
    said = _said(alone.run("catalog", "check", "--json", KARGAH_OFFLINE="1", KARGAH_CATALOG=str(site)))
    assert (said["offline"], said["entries"], said["problems"]) == (True, [], [])
    assert said["summary"]["entries"] > 30
    assert scripted.requests == []


def test_the_packages_catalog_against_a_real_hub(alone: Living, model_hub: str) -> None:
    only = ("--only", BERT, "--only", "kargah/mini-fa")
    said = _said(alone.run("catalog", "check", *only, "--json", KARGAH_HUB_ENDPOINT=model_hub))
    # What is built in is not asked for.
    assert [(entry["id"], entry["status"]) for entry in said["entries"]] == [(BERT, "ok")]


def test_a_setting_that_is_wrong_is_said(alone: Living) -> None:
    done = alone.run("catalog", "check", KARGAH_HUB_ENDPOINT="ftp://x")
    assert done.returncode == 1
    assert "KARGAH_HUB_ENDPOINT" in done.stderr


# ───────── schema ─────────


def test_the_schema_accepts_what_the_catalog_accepts(alone: Living) -> None:
    schema = _said(alone.run("catalog", "schema"))
    validator = jsonschema_rs.validator_for(schema)
    folder = resources.files("kargah.assets").joinpath("catalog")
    for name in ("models.toml", "datasets.toml"):
        validator.validate(tomllib.loads(folder.joinpath(name).read_text(encoding="utf-8")))
    good = _entry("org/it") + _entry("org/data", 'columns = { text = "t" }', "dataset")
    validator.validate(tomllib.loads('remove = ["google/mt5-base"]\n' + good))
    for bad in (
        _entry("org/it", 'licens = "mit"'),
        _entry("../it"),
        _entry("org/it").replace('huggingfaceId = "org/it"', ""),
        _entry("org/it", 'kind = "dataset"'),
        _entry("org/it", "digests.'a.bin' = { digest = 'md5:1' }"),
        "modles = []",
    ):
        assert not validator.is_valid(tomllib.loads(bad)), bad
    described = schema["$defs"]["ModelEntry"]["properties"]
    assert all("description" in field or "$ref" in field for field in described.values())


# ───────── requests ─────────


def test_a_request_from_asking_to_approval(make_living: MakeLiving, scripted: ScriptedHub, site: Path) -> None:
    site.write_text("", encoding="utf-8")
    info = scripted.has("lab/needed", cardData={"license": "mit", "language": "fa"}, pipeline_tag="fill-mask")
    scripted.say(f"/api/models/lab/needed/revision/{info['sha']}", Said(body=info))
    living = make_living(hub_endpoint=scripted.url, catalog=str(site))
    assert living.run("catalog", "requests").stdout.strip() == "There are no such requests."
    asked = living.run("catalog", "request", "lab/needed", "--reason", "برای\nدرمانگاه‌ها")
    assert asked.returncode == 0, asked.stderr
    again = living.run("catalog", "request", "lab/needed", lang="fa")
    assert "پیش‌تر" in again.stdout
    made = _said(living.run("catalog", "request", "lab/data", "--dataset", "--json"))
    assert (made["kind"], made["status"]) == ("dataset", "open")
    refused = living.run("catalog", "request", BERT)
    assert refused.returncode == 3
    assert "[ALREADY_APPROVED]" in refused.stderr

    listed = json.loads(living.run("catalog", "requests", "--json").stdout)
    assert [(one["id"], one["numAsked"]) for one in listed] == [("lab/data", 1), ("lab/needed", 2)]
    shown = living.run("catalog", "requests", lang="fa").stdout
    assert "lab/needed" in shown
    assert "درمانگاه‌ها" in shown

    declined = living.run("catalog", "decline", made["requestId"][:8], "--note", "داده‌های بیماران است")
    assert declined.returncode == 0, declined.stderr
    assert living.run("catalog", "decline", made["requestId"]).returncode == 3
    assert living.run("catalog", "decline", "f" * 32).returncode == 3
    (one,) = json.loads(living.run("catalog", "requests", "--status", "declined", "--json").stdout)
    assert one["note"] == "داده‌های بیماران است"

    block = living.run("catalog", "requests", "--toml", lang="fa")
    assert block.returncode == 0, block.stderr
    assert "# درمانگاه‌ها" in block.stdout
    (entry,) = tomllib.loads(block.stdout)["models"]
    assert (entry["id"], entry["licence"], entry["languages"]) == ("lab/needed", "mit", ["fa"])
    bare = living.run("catalog", "requests", "--toml", KARGAH_OFFLINE="1").stdout
    assert set(tomllib.loads(bare)["models"][0]) == {"id", "huggingfaceId", "name"}

    site.write_text(re.sub(r'# (description\.\w+) = ""  # .*', r'\1 = "said"', block.stdout), encoding="utf-8")
    assert living.run("catalog", "check", "--file", str(site)).returncode == 0
    living.terminate()
    living.start()
    (one,) = json.loads(living.run("catalog", "requests", "--status", "approved", "--json").stdout)
    assert one["id"] == "lab/needed"
    assert one["decidedAt"]


def test_requests_need_a_server_and_one_form(make_living: MakeLiving) -> None:
    nobody = make_living("nobody", start=False)
    for arguments in (("request", "lab/x"), ("requests",), ("requests", "--toml"), ("decline", "f" * 32)):
        assert nobody.run("catalog", *arguments).returncode == 4
    assert nobody.run("catalog", "requests", "--toml", "--json").returncode == 2
    assert nobody.run("catalog", "requests", "--status", "lost").returncode == 2
