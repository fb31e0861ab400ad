"""`kargah import` against a real server, and imports that a server's end disturbs."""

import json
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import httpx
import pytest
from living import BERT, PATIENCE_SECONDS, PICKLED, Living, MakeLiving

from kargah.ground.home import folder_name
from kargah.hub.importing import Order, write_order

OPINIONS = "site/opinions"


@pytest.fixture
def living(make_living: MakeLiving) -> Living:
    return make_living("خانه", offline="1")


def _archive(folder: Path, place: Path) -> Path:
    with zipfile.ZipFile(place, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return place


def test_a_folder_a_cache_and_an_archive(living: Living, tiny: Path, tmp_path: Path) -> None:
    folder = tiny / "models" / BERT
    done = living.run("import", str(folder))
    assert done.returncode == 0, done.stderr
    assert BERT in done.stdout
    assert "nothing proves" in done.stdout
    held = living.home / "models" / folder_name(BERT)
    again = living.run("import", str(folder), lang="fa")
    assert again.returncode == 0
    assert BERT in again.stdout

    # What this one holds is what another one takes, with its digests.
    copy = tmp_path / "stick" / "models" / held.name
    shutil.copytree(held, copy)
    assert living.run("assets", "delete", BERT, "--yes").returncode == 0
    proved = living.run("import", str(tmp_path / "stick"), "--json")
    assert proved.returncode == 0, proved.stderr
    said = json.loads(proved.stdout)
    assert (said["status"], said["verified"], said["importedFrom"]) == ("done", "manifest", "folder")

    archive = _archive(tiny / "datasets" / OPINIONS, tmp_path / "نظرها.zip")
    data = living.run("import", str(archive), "--dataset", "--id", OPINIONS, "--json", lang="fa")
    assert data.returncode == 0, data.stderr
    assert json.loads(data.stdout)["status"] == "done"


def test_what_cannot_be_is_said_and_nothing_is_taken(living: Living, tiny: Path, tmp_path: Path) -> None:
    folder = tiny / "models" / BERT
    assert living.run("import", str(tmp_path / "nothing")).returncode == 2
    assert living.run("import", str(folder / "config.json")).returncode == 2
    other = living.run("import", str(folder), "--id", "nobody/approved-this")
    assert (other.returncode, "MODEL_NOT_ALLOWED" in other.stderr) == (3, True)
    unnamed = living.run("import", str(tiny / "opinions"))
    assert "IMPORT_UNNAMED" in unnamed.stderr
    assert unnamed.returncode == 1
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    cut = living.run("import", str(broken), "--id", BERT, lang="fa")
    assert cut.returncode == 1
    assert "model.safetensors" in cut.stderr
    assert "[CHECKSUM_MISMATCH]" in cut.stderr
    (broken / "more").symlink_to("/etc")
    assert "UNSAFE_PATH" in living.run("import", str(broken), "--id", BERT).stderr
    assert not (living.home / "models" / folder_name(BERT)).exists()
    living.terminate()
    assert living.run("import", str(folder)).returncode == 4


def test_the_end_of_a_server_in_the_middle(living: Living, tiny: Path) -> None:
    """Whole ones are taken up again, others end; what nobody wants is cleared away. `kill -9` each time."""
    folder = tiny / "models" / PICKLED
    with httpx.Client(base_url=living.url, trust_env=False, timeout=PATIENCE_SECONDS) as http:
        parts = [("file", (path.name, path.read_bytes())) for path in folder.iterdir()]
        answer = http.post("/api/models/import", data={"modelId": PICKLED}, files=parts)
    assert answer.status_code == 202, answer.text
    begun = answer.json()["data"]
    living.kill()
    lost = living.home / "imports" / ".0123.receiving"
    lost.mkdir()
    (lost / "0").write_bytes(b"half")
    living.start()
    last = living.events("/api/models/download/progress", modelId=PICKLED)[-1].data
    assert (last["status"], last["downloadId"]) == ("done", begun["downloadId"])
    assert not lost.exists()


def test_an_import_whose_files_are_not_all_there_ends(living: Living, tiny: Path) -> None:
    folder = tiny / "models" / PICKLED
    parts = [("file", (path.name, path.read_bytes())) for path in folder.iterdir()]
    with httpx.Client(base_url=living.url, trust_env=False, timeout=PATIENCE_SECONDS) as http:
        transfer = http.post("/api/models/import", data={"modelId": PICKLED}, files=parts).json()["data"]["downloadId"]
    assert living.process is not None
    # Converting takes seconds: the server stands still in it, and does not come to an end of it.
    living.process.send_signal(signal.SIGSTOP)
    place = living.home / "imports" / transfer
    assert place.is_dir()
    living.kill()
    write_order(place, Order(kind="model", wanted=PICKLED, files=("config.json", "gone.bin") * 20))
    living.start()
    last = living.events("/api/models/download/progress", modelId=PICKLED)[-1].data
    assert (last["status"], last["error"]) == ("error", "UPLOAD_INTERRUPTED")
    _until_gone(place)


def test_an_import_can_be_cancelled_but_not_paused(living: Living, tiny: Path) -> None:
    folder = tiny / "models" / PICKLED
    parts = [("file", (path.name, path.read_bytes())) for path in folder.iterdir()]
    with httpx.Client(base_url=living.url, trust_env=False, timeout=PATIENCE_SECONDS) as http:
        transfer = http.post("/api/models/import", data={"modelId": PICKLED}, files=parts).json()["data"]["downloadId"]
        paused = http.post("/api/models/download/pause", json={"modelId": PICKLED})
        assert (paused.status_code, paused.json()["error"]) == (409, "INVALID_STATE")
        assert http.post("/api/models/download/cancel", json={"modelId": PICKLED}).status_code == 202
    last = living.events("/api/models/download/progress", modelId=PICKLED)[-1].data
    assert (last["status"], last["error"]) == ("error", "CANCELLED")
    _until_gone(living.home / "imports" / transfer)
    assert not list((living.home / "models").glob(f"{folder_name(PICKLED)}/*/*"))


def test_the_limit_is_its_own(make_living: MakeLiving, tiny: Path) -> None:
    living = make_living("small", max_import_bytes="10000", max_upload_bytes="1")
    refused = living.run("import", str(tiny / "models" / BERT))
    assert (refused.returncode, "TOO_LARGE" in refused.stderr) == (3, True), refused.stderr
    assert os.listdir(living.home / "imports") == []


def _until_gone(place: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while place.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
