"""Served folders, read by the unmodified client of the hub over real sockets."""

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from faults import FaultProxy
from huggingface_hub import HfApi, hf_hub_download, set_client_factory, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoFile, RepoFolder
from huggingface_hub.utils._http import default_client_factory
from starlette.testclient import TestClient
from workshop import RunningHub

from kargah.hub.folder_source import FolderSource
from kargah.hub.protocol import hub_router
from kargah.hub.source import SourceFile, SourceSnapshot, git_blob_id, pointer_of

WEIGHTS = hashlib.sha256(b"weights").digest() * 4000
CONFIG = '{"model_type": "bert", "نام": "آزمون"}'.encode()
PERSIAN = "داده‌ها/واژه‌نامه.txt"
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, PERSIAN: "سلام".encode(), "empty.txt": b""}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(autouse=True)
def _unmodified_client() -> None:
    """The client as it is, whatever another test of this process made of it."""
    set_client_factory(default_client_factory)


@pytest.fixture
def seen(hub: RunningHub) -> Iterator[FaultProxy]:
    hub.add("org/tiny", FILES)
    hub.add("gpt", FILES)
    hub.add("org/set", {"data/train.csv": b"text\n"}, kind="datasets")
    with FaultProxy(hub.url) as proxy:
        yield proxy


@pytest.fixture
def api(seen: FaultProxy) -> HfApi:
    return HfApi(endpoint=seen.url, token=False)


def test_info(api: HfApi) -> None:
    info = api.repo_info("org/tiny")
    assert isinstance(info, ModelInfo)
    assert info.sha is not None
    assert len(info.sha) == 40
    assert {sibling.rfilename for sibling in info.siblings or ()} == set(FILES)
    assert api.repo_info("org/tiny", revision="main").sha == info.sha
    assert api.repo_info("org/tiny", revision=info.sha).sha == info.sha
    assert api.repo_info("gpt").sha == info.sha
    with_blobs = {s.rfilename: s for s in api.model_info("org/tiny", files_metadata=True).siblings or ()}
    assert with_blobs["config.json"].blob_id == git_blob_id(CONFIG)
    assert with_blobs["model.safetensors"].lfs is not None
    assert with_blobs["model.safetensors"].lfs.sha256 == SHA256
    data = api.repo_info("org/set", repo_type="dataset")
    assert isinstance(data, DatasetInfo)
    assert data.id == "org/set"


def test_tree(api: HfApi) -> None:
    entries = {entry.path: entry for entry in api.list_repo_tree("org/tiny", recursive=True)}
    assert set(entries) == {*FILES, "داده‌ها"}
    weights = entries["model.safetensors"]
    assert isinstance(weights, RepoFile)
    assert weights.lfs is not None
    assert (weights.size, weights.lfs.sha256) == (len(WEIGHTS), SHA256)
    assert weights.blob_id == git_blob_id(pointer_of(SHA256, len(WEIGHTS)))
    assert weights.xet_hash is None
    config = entries["config.json"]
    assert isinstance(config, RepoFile)
    assert config.lfs is None
    assert config.blob_id == git_blob_id(CONFIG)
    flat = {entry.path: type(entry) for entry in api.list_repo_tree("org/tiny")}
    assert PERSIAN not in flat
    assert flat["داده‌ها"] is RepoFolder
    assert [entry.path for entry in api.list_repo_tree("org/tiny", "داده‌ها")] == [PERSIAN]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("org/tiny", "additional_chat_templates"))


def test_paths_info_as_form_and_as_json(api: HfApi, hub: RunningHub) -> None:
    paths = [PERSIAN, "data", "داده‌ها", "config.json"]
    assert [entry.path for entry in api.get_paths_info("org/tiny", paths)] == [PERSIAN, "داده‌ها", "config.json"]
    answer = httpx.post(f"{hub.url}/api/models/org/tiny/paths-info/main", json={"paths": paths})
    assert [entry["path"] for entry in answer.json()] == [PERSIAN, "داده‌ها", "config.json"]
    assert httpx.post(f"{hub.url}/api/models/org/tiny/paths-info/main", json={"paths": 3}).status_code == 400


def test_refs_lists_and_whoami(api: HfApi) -> None:
    (branch,) = api.list_repo_refs("org/tiny").branches
    assert (branch.name, branch.target_commit) == ("main", api.repo_info("org/tiny").sha)
    assert [model.id for model in api.list_models()] == ["gpt", "org/tiny"]
    assert [model.id for model in api.list_models(search="TINY")] == ["org/tiny"]
    assert [model.id for model in api.list_models(author="org", limit=5)] == ["org/tiny"]
    assert [data.id for data in api.list_datasets()] == ["org/set"]
    assert api.whoami(token="any")["name"] == "kargah"


def test_one_file(seen: FaultProxy, tmp_path: Path) -> None:
    path = hf_hub_download("org/tiny", PERSIAN, endpoint=seen.url, cache_dir=tmp_path, token=False)
    assert Path(path).read_bytes() == FILES[PERSIAN]
    weights = Path(hf_hub_download("gpt", "model.safetensors", endpoint=seen.url, cache_dir=tmp_path, token=False))
    assert weights.read_bytes() == WEIGHTS
    assert weights.resolve().name == SHA256
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/tiny", "absent.json", endpoint=seen.url, cache_dir=tmp_path, token=False)
    assert list(tmp_path.rglob(".no_exist/*/absent.json"))


def test_a_whole_repository(seen: FaultProxy, tmp_path: Path) -> None:
    folder = Path(snapshot_download("org/tiny", endpoint=seen.url, cache_dir=tmp_path, token=False))
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    data = Path(
        snapshot_download("org/set", repo_type="dataset", endpoint=seen.url, local_dir=tmp_path / "set", token=False)
    )
    assert (data / "data/train.csv").read_bytes() == b"text\n"


def test_what_is_not_there(api: HfApi, hub: RunningHub) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("org/absent")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("org/tiny", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.list_repo_refs("org/absent")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("org/tiny", revision="refs/pr/7")
    for place in ("/api/models/org/tiny/tree/main/additional_chat_templates", "/org/tiny/resolve/main/no.json"):
        answer = httpx.head(hub.url + place)
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")
        assert answer.headers["X-Repo-Commit"] == api.repo_info("org/tiny").sha
    for place in ("/", "/api/models/..%2f..", "/org/tiny/resolve/main/..%2f..%2fgpt%2fconfig.json", "/api/spaces/a/b"):
        assert httpx.get(hub.url + place).status_code == 404
    assert httpx.post(f"{hub.url}/org/tiny/resolve/main/config.json").status_code == 405


def test_headers_and_ranges(seen: FaultProxy, hub: RunningHub) -> None:
    url = f"{hub.url}/org/tiny/resolve/main/model.safetensors"
    head = httpx.head(url)
    assert head.status_code == 200
    assert not head.content
    assert head.headers["ETag"] == f'"{SHA256}"'
    assert head.headers["Content-Length"] == str(len(WEIGHTS))
    assert len(head.headers["X-Repo-Commit"]) == 40
    assert not [name for name in head.headers if "xet" in name.lower()]
    assert "link" not in head.headers
    size = len(WEIGHTS)
    for asked, start, end in [("bytes=0-9", 0, 10), ("bytes=100-", 100, size), ("bytes=-7", size - 7, size)]:
        part = httpx.get(url, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, WEIGHTS[start:end])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = httpx.get(url, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    other = httpx.get(url, headers={"Range": "bytes=5-", "If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, WEIGHTS)
    small = httpx.head(f"{hub.url}/datasets/org/set/resolve/main/data/train.csv")
    assert small.headers["ETag"] == f'"{git_blob_id(b"text" + bytes([10]))}"'
    assert httpx.get(f"{hub.url}/org/tiny/resolve/main/empty.txt").content == b""


class _Refs:
    """A source that knows one repository at two revisions."""

    def __init__(self, folder: Path) -> None:
        self._snapshots: dict[str, SourceSnapshot] = {}
        for revision, content in {"main": b"main", "refs/pr/1": b"proposed"}.items():
            place = folder / revision.replace("/", "-")
            place.write_bytes(content)
            file = SourceFile("a.txt", place, len(content), git_blob_id(content))
            commit = hashlib.sha1(content).hexdigest()
            self._snapshots[revision] = SourceSnapshot("org/name", "model", commit, {"a.txt": file})

    def find(self, kind: str, repo_id: str, revision: str | None) -> SourceSnapshot | None:
        return self._snapshots.get(revision or "main") if (kind, repo_id) == ("model", "org/name") else None

    def refs(self, kind: str, repo_id: str) -> Mapping[str, str] | None:
        found = (kind, repo_id) == ("model", "org/name")
        return {name: snapshot.commit for name, snapshot in self._snapshots.items()} if found else None

    def repos(self, kind: str) -> Iterable[SourceSnapshot]:
        return [self._snapshots["main"]] if kind == "model" else []


@pytest.mark.parametrize("mounted", [False, True])
def test_revisions_with_slashes_below_a_prefix(tmp_path: Path, mounted: bool) -> None:
    app = FastAPI()
    if mounted:
        inner = FastAPI()
        inner.include_router(hub_router(_Refs(tmp_path)))
        app.mount("/hub", inner)
    else:
        app.include_router(hub_router(_Refs(tmp_path), prefix="/hub"))
    client = TestClient(app)
    for revision in ("refs%2Fpr%2F1", "refs/pr/1"):
        assert client.get(f"/hub/org/name/resolve/{revision}/a.txt").content == b"proposed"
        assert client.get(f"/hub/api/models/org/name/tree/{revision}").json()[0]["oid"] == git_blob_id(b"proposed")
        answer = client.get(f"/hub/api/models/org/name/revision/{revision}")
        assert answer.json()["sha"] == hashlib.sha1(b"proposed").hexdigest()
    refs = client.get("/hub/api/models/org/name/refs").json()
    assert [ref["ref"] for ref in refs["branches"] + refs["pullRequests"]] == ["refs/heads/main", "refs/pr/1"]
    assert client.get("/hub/org/name/resolve/main/a.txt").content == b"main"


def test_a_commit_depends_on_contents_alone(tmp_path: Path) -> None:
    commits = []
    for name in ("one", "two"):
        folder = tmp_path / name / "models" / "org" / "tiny"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_bytes(b"a")
        found = FolderSource(tmp_path / name).find("model", "org/tiny", None)
        assert found is not None
        commits.append(found.commit)
    assert commits[0] == commits[1]


def test_an_earlier_commit_stays_without_what_was_changed(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a")
    (folder / "b.txt").write_bytes(b"b")
    source = FolderSource(tmp_path)
    first = source.find("model", "org/tiny", None)
    assert first is not None
    (folder / "b.txt").write_bytes(b"another b")
    (folder / "c.txt").write_bytes(b"c")
    second = source.find("model", "org/tiny", "main")
    assert second is not None
    assert second.commit != first.commit
    assert len(second.files) == 3
    earlier = source.find("model", "org/tiny", first.commit)
    assert earlier is not None
    assert (earlier.commit, set(earlier.files)) == (first.commit, {"a.txt"})
    assert source.find("model", "org/tiny", "0" * 40) is None


def test_the_command_serves_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(CONFIG)
    command = [sys.executable, "-m", "kargah.hub.serve", str(tmp_path), "--port", "0", "--rate-limit", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/org/tiny/resolve/main/config.json", timeout=10).content == CONFIG
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
