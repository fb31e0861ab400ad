"""Real parts for every room: a hub with tiny models, a platform in this process, a server as a process of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from living import BERT, NOBODY, TESTS, HoldModel, Living, MakeLiving
from starlette.testclient import TestClient

from kargah.app.platform import Platform
from kargah.app.server import Application
from kargah.ground.home import folder_name
from kargah.ground.settings import Settings
from kargah.spec.manifest import write_manifest

SITE = """
{remove}

[[models]]
id = "site/evil"
huggingfaceId = "site/evil"
name = "evil"
description.fa = "مدلی با وزن‌های ناامن"
description.en = "weights that run a command"

[[models]]
id = "site/absent"
huggingfaceId = "site/absent"
name = "absent"
description.fa = "مخزنی که نیست"
description.en = "a repository that is not there"

[[datasets]]
id = "site/opinions"
huggingfaceId = "site/opinions"
name = "نظرها"
description.fa = "نظرهای کوتاه"
description.en = "short opinions"
columns = {{ text = "متن", label = "برچسب" }}
files = {{ train = "train.csv", validation = "validation.csv" }}
"""


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("KARGAH_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `tiny_models.py` makes."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, str(TESTS / "tiny_models.py"), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def model_hub(tiny: Path) -> Iterator[str]:
    """The address of a hub that serves `tiny`."""
    process = subprocess.Popen([sys.executable, "-m", "kargah.hub.serve", str(tiny)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.kill()
    process.communicate()


@pytest.fixture(scope="session")
def site_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's catalog; the built-in model is left out as long as the package does not carry it."""
    carried = resources.files("kargah.assets").joinpath("builtin", "mini_fa").is_dir()
    file = tmp_path_factory.mktemp("site") / "catalog.toml"
    file.write_text(SITE.format(remove="" if carried else 'remove = ["kargah/mini-fa"]'), encoding="utf-8")
    return file


@pytest.fixture
def make_living(tmp_path: Path, site_catalog: Path) -> Iterator[MakeLiving]:
    """Starts servers of the test's own; `hub_endpoint` and other settings by keyword."""
    made: list[Living] = []

    def make(name: str = "home", *, start: bool = True, **settings: str) -> Living:
        living = Living(tmp_path / name, **{"catalog": str(site_catalog), "hub_endpoint": NOBODY, **settings})
        made.append(living)
        if start:
            living.start()
        return living

    yield make
    for living in made:
        living.close()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, site_catalog: Path, model_hub: str) -> Iterator[Living]:
    """One server that the tests share."""
    home = tmp_path_factory.mktemp("live") / "خانه"
    living = Living(home, catalog=str(site_catalog), hub_endpoint=model_hub, local_runs="1")
    living.start()
    yield living
    living.close()


@pytest.fixture
def settings(tmp_path: Path, site_catalog: Path) -> Settings:
    return Settings(home=tmp_path / "home", catalog=site_catalog, hub_endpoint=(NOBODY,))


@pytest.fixture
def application(settings: Settings) -> Application:
    """The server's application on a temporary home; `api` opens it."""
    return Application(Platform(settings))


@pytest.fixture
def api(application: Application) -> Iterator[TestClient]:
    """A client of the application, opened and closed as a server does."""
    with TestClient(
        application.asgi, base_url="http://127.0.0.1", headers={"Accept-Language": "en"}, raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture
def platform(application: Application, api: TestClient) -> Platform:
    """The open platform behind `api`."""
    return application.platform


@pytest.fixture
def hold_model(platform: Platform, tiny: Path) -> HoldModel:
    """Puts the tiny model into the platform as an arrived one. Returns its folder."""

    def hold(asset_id: str = BERT, *, kind: str = "model", source: str = "HuggingFace", **values: Any) -> Path:
        folder = platform.home.models / folder_name(asset_id) / "c1"
        shutil.copytree(tiny / "models" / BERT, folder)
        size = write_manifest(folder, repoId=asset_id)
        with platform.database.write() as session:
            platform.registry.put(
                session,
                kind,
                asset_id,
                **{
                    "name": asset_id,
                    "source": source,
                    "status": "ready",
                    "size_bytes": size,
                    "path": str(folder.relative_to(platform.home.root)),
                    "revision": "c1",
                    **values,
                },
            )
        return folder

    return hold


@pytest.fixture
def upload(api: TestClient) -> Callable[..., str]:
    """Uploads a data set from rows and waits until it is ready. Returns its id."""

    def send(rows: list[tuple[str, str]], columns: tuple[str, str] = ("text", "label"), name: str = "نمونه") -> str:
        text = "\n".join([",".join(columns), *(",".join(row) for row in rows)])
        answer = api.post("/api/datasets/upload", data={"name": name}, files={"file": ("rows.csv", text.encode())})
        assert answer.status_code == 202, answer.text
        dataset_id = answer.json()["data"]["datasetId"]
        stream = api.get("/api/datasets/download/progress", params={"datasetId": dataset_id})
        assert '"status":"done"' in stream.text, stream.text
        return str(dataset_id)

    return send
