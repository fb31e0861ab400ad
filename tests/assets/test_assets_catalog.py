"""The catalog: what the package approves, what a site changes of it, and faults named with file, entry and field."""

from pathlib import Path

import pytest

from kargah.assets.catalog import check_id, load_catalog
from kargah.assets.errors import CatalogInvalid, DatasetNotAllowed, ModelNotAllowed
from kargah.ground.errors import ValidationFailed

ENTRY = """
[[{table}]]
id = "{id}"
huggingfaceId = "{id}"
name = "نام"
description.fa = "شرح"
description.en = "{about}"
{more}
"""


def _entry(id: str = "site/model", table: str = "models", more: str = "", about: str = "about") -> str:
    return ENTRY.format(id=id, table=table, more=more, about=about)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "catalog.toml"


def test_the_package_s_catalog_loads() -> None:
    catalog = load_catalog()
    models, datasets = catalog.of_kind("model"), catalog.of_kind("dataset")
    assert len(models) > 20
    assert len(datasets) > 10
    for entry in (*models, *datasets):
        assert entry.description.fa != entry.description.en
        assert entry.languages or entry.kind == "dataset", entry.id
    for id in ("HooshvareLab/bert-fa-base-uncased", "HooshvareLab/distilbert-fa-zwnj-base", "kargah/mini-fa"):
        assert catalog.require("model", id).id == id


def test_the_gate() -> None:
    catalog = load_catalog()
    with pytest.raises(ModelNotAllowed):
        catalog.require("model", "evil/model")
    with pytest.raises(DatasetNotAllowed):
        catalog.require("dataset", "HooshvareLab/bert-fa-base-uncased")
    with pytest.raises(ModelNotAllowed):
        catalog.require("model", "hooshvarelab/bert-fa-base-uncased")


def test_an_entry_is_found_under_its_hub_id_too(site: Path) -> None:
    site.write_text(_entry().replace('huggingfaceId = "site/model"', 'huggingfaceId = "hub/name"'), encoding="utf-8")
    catalog = load_catalog(site)
    assert catalog.require("model", "hub/name").id == "site/model"
    assert catalog.require("model", "site/model").repo_id == "hub/name"


def test_a_site_adds_replaces_and_removes(site: Path) -> None:
    known = "HooshvareLab/bert-fa-base-uncased"
    gone = "HooshvareLab/distilbert-fa-zwnj-base"
    site.write_text(f'remove = ["{gone}"]\n' + _entry() + _entry(known, about="ours"), encoding="utf-8")
    catalog, package = load_catalog(site), load_catalog()
    assert catalog.require("model", "site/model").name == "نام"
    assert catalog.require("model", known).description.en == "ours"
    assert catalog.find("model", gone) is None
    assert len(catalog.entries) == len(package.entries)


@pytest.mark.parametrize(
    ("text", "entry", "field"),
    [
        ("models = [", "-", "-"),
        ("models = 3", "-", "models"),
        ("modles = []", "-", "modles"),
        ("remove = ['nobody/here']", "nobody/here", "remove"),
        ("models = ['x']", "models[1]", "-"),
        (_entry() + _entry(), "site/model", "id"),
        (_entry(more="kind = 'dataset'"), "site/model", "kind"),
        (_entry(more="licens = 'mit'"), "site/model", "licens"),
        (_entry(more="parameters = 0"), "site/model", "parameters"),
        (_entry(more="parameters = 'many'"), "site/model", "parameters"),
        (_entry(more="digests.'a.bin' = { digest = 'md5:1' }"), "site/model", "digests.a.bin.digest"),
        (_entry(more="source = 'ftp'"), "site/model", "source"),
        (_entry("../../etc/passwd"), "../../etc/passwd", "id"),
        (_entry("a/b/c"), "a/b/c", "id"),
        (_entry(about=""), "site/model", "description.en"),
        (_entry(table="datasets", more="files = { all = 'x.csv' }"), "site/model", "files.all.[key]"),
        (_entry().replace('huggingfaceId = "site/model"\n', ""), "site/model", "huggingfaceId"),
        (_entry().replace('id = "site/model"\n', "", 1), "models[1]", "id"),
    ],
)
def test_faults_of_a_site_file_are_named(site: Path, text: str, entry: str, field: str) -> None:
    site.write_text(text, encoding="utf-8")
    with pytest.raises(CatalogInvalid) as fault:
        load_catalog(site)
    params = fault.value.params
    assert (params["file"], params["entry"], params["field"]) == (str(site), entry, field)
    assert params["problem"]
    for language in ("fa", "en"):
        assert str(site) in fault.value.message(language)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for place in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(CatalogInvalid) as fault:
            load_catalog(place)
        assert fault.value.params["file"] == str(place)
    (tmp_path / "latin.toml").write_bytes("# é".encode("latin-1"))
    with pytest.raises(CatalogInvalid):
        load_catalog(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    "id", ["", "..", "../x", "a/../b", "/a", "a/", "a//b", "a b", "a\n", "شناسه", "a/b/c", "-a", "a" * 161, "a%2Fb"]
)
def test_what_cannot_be_an_id_is_refused(id: str) -> None:
    with pytest.raises(ValidationFailed):
        check_id("modelId", id)


@pytest.mark.parametrize("id", ["bert", "org/name", "a" * 32, "Org.x/na_me-1.0"])
def test_what_can_be_an_id_is_taken(id: str) -> None:
    assert check_id("modelId", id) == id
