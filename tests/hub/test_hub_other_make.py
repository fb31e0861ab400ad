"""Hubs of other makes: what they do differently arrives all the same, what they do wrong is refused with a reason."""

import hashlib
import json
import re
import socket
import threading
from dataclasses import replace
from typing import Any

import pytest
from download import Download, failure_of
from other_hub import COMMIT, Entries, OtherHub
from workshop import SMALL, Workshop

from kargah.hub import listing
from kargah.hub.endpoint import Endpoint
from kargah.hub.failure import TransferFailed
from kargah.hub.job import Job
from kargah.hub.snapshot import build_snapshot
from kargah.spec.manifest import read_manifest, verify_folder

REPO = "Lab.Fa/BERT_v1.0-small"
WEIGHTS = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(10_000))
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": WEIGHTS,
    "واژه‌ها/فهرست ي قدیمی #1 100%.txt": "سلام\n".encode(),
    "1_Pooling/inner/config.json": b'{"mean": true}',
    "empty.txt": b"",
}
PORTAL = "<html>شما باید وارد شوید</html>".encode()


def _arrive(workshop: Workshop, hub: OtherHub, *endpoints: str | Endpoint) -> Job:
    """Download in this process, to the snapshot, and look at every byte."""
    job = workshop.job(hub.repo_id, *(endpoints or (hub.url,)))
    download = Download(job)
    plan = download.plan()
    download.run(plan)
    build_snapshot(plan, download.store, job.target)
    verify_folder(job.target)
    assert set(read_manifest(job.target)["files"]) == set(hub.files)
    for path, content in hub.files.items():
        assert (job.target / path).read_bytes() == content, path
    assert download.meter.bytes_downloaded == plan.total_bytes == sum(map(len, {*hub.files.values()}))
    assert not list((job.blobs / "parts").iterdir())
    return job


def _name(value: Any) -> str:
    """A parameter as a name that is the same in every process: without addresses."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))[:60].encode("ascii", "replace").decode()


@pytest.mark.parametrize(
    "habits",
    [
        {},
        {"prefix": "/mirror/hf"},
        {"recursive": False},
        {"page": 1},
        {
            "page": 2,
            "next_page": lambda target, start: f'<https://hub.example{target[21:]}>; rel="next", <x>; rel="last"',
        },
        {"tree": False},
        {"tree": False, "digests": False},
        {"digests": False},
        {"digests": False, "etag": 'W/"{}"', "header_case": str.lower},
        {"digests": False, "etag": '"{}-gzip"', "close": True},
        {"digests": False, "etag": "{}"},
        {"commit_header": False},
        {"chunked": True},
        {"chunked": True, "close": True, "commit_header": False},
        {"close": True},
        {"http": "HTTP/1.0"},
        {"http": "HTTP/1.0", "close": True},
        {"header_case": str.upper},
        {"header_case": str.lower},
        {"full_status": 206},
        {"etag": 'W/"a", "b"'},
    ],
    ids=_name,
)
def test_a_habit_is_lived_with(workshop: Workshop, habits: dict[str, Any]) -> None:
    with OtherHub(REPO, FILES, **habits) as hub:
        _arrive(workshop, hub)


def test_ipv6(workshop: Workshop) -> None:
    if not socket.has_ipv6:
        pytest.skip("needs IPv6")
    with OtherHub(REPO, FILES, host="::1", page=2) as hub:
        _arrive(workshop, hub)
        assert hub.asked_for("/api/")[0]["host"] == hub.url.removeprefix("http://")


def test_a_packed_answer_about_a_repository_is_unpacked_and_packed_files_are_not_taken(workshop: Workshop) -> None:
    with OtherHub(REPO, FILES, packed=True) as hub, OtherHub(REPO, FILES) as plain:
        assert "coding" in failure_of(Download(workshop.job(REPO, hub.url))).detail
        _arrive(workshop, plain, hub.url, plain.url)
        assert hub.asked_for("/api/")


def test_a_renamed_repository_is_followed_everywhere(workshop: Workshop) -> None:
    new = "Lab.Fa/New-Name"
    paths = [f"/api/models/{REPO}", f"/api/models/{REPO}/tree/{COMMIT}"]
    redirects = {path: (307 if "tree" in path else 301, path.replace(REPO, new)) for path in paths}
    redirects |= {
        f"/{REPO}/resolve/{COMMIT}/{name}": (301, f"/{new}/resolve/{COMMIT}/{name}") for name in FILES if name.isascii()
    }
    with OtherHub(new, FILES, redirects=redirects) as hub:
        hub.repo_id, moved = REPO, hub.repo_id
        hub.habits.moved_to = moved
        job = _arrive(workshop, hub)
        assert read_manifest(job.target)["repoId"] == REPO


def test_two_redirects_to_a_storage_whose_addresses_expire(workshop: Workshop) -> None:
    path = f"/{REPO}/resolve/{COMMIT}/model.safetensors"
    with OtherHub(REPO, {"a?b/resolve/x/model.safetensors": b"", **FILES}) as storage:
        redirects = {
            path: (302, "../../../../../hop/model.safetensors?step=1"),
            "/hop/model.safetensors": (307, f"{storage.url}/x/resolve/y/model.safetensors?X-Amz-Expires=60&s=%2Bz%3D"),
        }
        with OtherHub(REPO, FILES, redirects=redirects) as hub:
            _arrive(workshop, hub, Endpoint(hub.url, token="secret"))
            assert hub.sent["model.safetensors"] == 0
            ((target, headers),) = storage.asked
            assert target.endswith("?X-Amz-Expires=60&s=%2Bz%3D")
            assert "authorization" not in headers


def test_a_digest_is_asked_of_the_hub_and_not_of_its_storage(workshop: Workshop) -> None:
    """The address of a large file sends on to a storage whose own ETag means nothing here."""
    path = f"/{REPO}/resolve/{COMMIT}/model.safetensors"
    with OtherHub(REPO, FILES, etag='"' + "0" * 40 + '"') as storage:
        hub = OtherHub(REPO, FILES, digests=False)
        headers = {"X-Linked-Etag": f'"{hashlib.sha256(WEIGHTS).hexdigest()}"', "X-Linked-Size": str(len(WEIGHTS))}
        hub.habits.answers[path] = (302, {"Location": f"{storage.url}{path}", **headers}, b"")
        with hub:
            _arrive(workshop, hub)
            assert hub.sent["model.safetensors"] == 0


def _changed(path: str, **facts: Any) -> Any:
    def change(entries: Entries) -> Entries:
        return [{**entry, **facts} if entry["path"] == path else entry for entry in entries]

    return change


def _and(*more: dict[str, Any]) -> Any:
    return lambda entries: [*entries, *more]


def _file(path: str, **facts: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": 1, "oid": "0" * 40, **facts}


LFS = {"oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}


@pytest.mark.parametrize(
    ("habits", "code"),
    [
        ({"entries": _changed("config.json", size=23)}, "CHECKSUM_MISMATCH"),
        ({"entries": _changed("config.json", size=21)}, "CHECKSUM_MISMATCH"),
        ({"entries": _changed("config.json", size=0)}, "CHECKSUM_MISMATCH"),
        ({"entries": _changed("config.json", size=-1)}, "NOT_A_HUB"),
        ({"entries": _changed("config.json", oid="1" * 40)}, "CHECKSUM_MISMATCH"),
        ({"entries": _changed("empty.txt", oid="1" * 40)}, "CHECKSUM_MISMATCH"),
        ({"entries": _changed("model.safetensors", lfs={**LFS, "oid": "1" * 64})}, "CHECKSUM_MISMATCH"),
        ({"entries": _changed("model.safetensors", lfs={**LFS, "size": len(WEIGHTS) + 1})}, "CHECKSUM_MISMATCH"),
        ({"entries": _and(_file("config.json"))}, "NOT_A_HUB"),
        ({"entries": _and(_file("b.txt"), _file("a.txt", size=2))}, "NOT_A_HUB"),
        ({"entries": lambda entries: [None, *entries]}, "NOT_A_HUB"),
        ({"entries": lambda entries: {"files": entries}}, "NOT_A_HUB"),
        ({"entries": _and({"type": "file", "path": 7})}, "NOT_A_HUB"),
        ({"page": 2, "next_page": lambda target, _: f'<{target.partition("?")[0]}?cursor=2>; rel="next"'}, "NOT_A_HUB"),
        ({"trailing": b"garbage", "chunked": False, "http": "HTTP/1.0", "close": True}, "CHECKSUM_MISMATCH"),
        ({"digests": False, "etag": '"v1-{}"'}, "NOT_A_HUB"),
        ({"entries": _and(_file("Config.JSON"))}, "UNSAFE_PATH"),
        ({"entries": _and(_file("caf\u00e9.txt"), _file("cafe\u0301.txt"))}, "UNSAFE_PATH"),
        ({"entries": _and(_file("config.json/inner.txt"))}, "UNSAFE_PATH"),
        ({"entries": _and({"type": "directory", "path": "../up", "oid": "0" * 40, "size": 0})}, "UNSAFE_PATH"),
        *(
            ({"entries": _and(_file(path))}, "UNSAFE_PATH")
            for path in (
                *("../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt"),
                *("a\0b.txt", "a//b.txt", "./a.txt", "ن" * 121 + ".txt", "a/" * 600 + "b.txt", "a/" * 80 + "b.txt"),
            )
        ),
    ],
    ids=_name,
)
def test_a_lie_is_refused(workshop: Workshop, habits: dict[str, Any], code: str) -> None:
    with OtherHub(REPO, FILES, **habits) as hub:
        job = workshop.job(REPO, hub.url)
        download = Download(job)
        failure = failure_of(download)
        assert failure.code == code, failure
        assert not job.target.exists()
        held = [path.read_bytes() for path in job.blobs.glob("*-*/*")]
        assert all(content in FILES.values() for content in held)
        assert {entry.name for entry in workshop.root.iterdir()} == {"blobs"}


@pytest.mark.parametrize("name", ["con.txt", "NUL", "aux.json", "dot..txt", "a.", "a b ", "ab:c.txt", "-rf.txt"])
def test_names_that_mean_something_elsewhere_are_plain_names_here(workshop: Workshop, name: str) -> None:
    path = f"{name}/{name}.txt"
    with OtherHub(REPO, {**FILES, path: name.encode()}) as hub:
        _arrive(workshop, hub)


def test_one_content_under_two_names_and_a_path_told_twice_the_same(workshop: Workshop) -> None:
    files = {**FILES, "copy/config.json": FILES["config.json"]}
    with OtherHub(REPO, files, entries=lambda entries: entries + entries) as hub:
        job = _arrive(workshop, hub)
        assert (job.target / "copy" / "config.json").samefile(job.target / "config.json")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((401, {"Content-Type": "text/html"}, PORTAL), "HUB_UNAUTHORIZED"),
        ((403, {"Content-Type": "text/html"}, PORTAL), "HUB_UNAUTHORIZED"),
        ((404, {"Content-Type": "text/html"}, PORTAL), "NOT_A_HUB"),
        ((200, {}, PORTAL), "NOT_A_HUB"),
        ((200, {}, b'{"sha": "' + COMMIT.encode() + b'", "id": "\xff\xfe"}'), "NOT_A_HUB"),
        ((200, {}, b"[" * 200_000), "NOT_A_HUB"),
        ((200, {}, b'{"a":' * 200_000), "NOT_A_HUB"),
        ((200, {}, b'["sha"]'), "NOT_A_HUB"),
        ((200, {}, b"null"), "NOT_A_HUB"),
        ((200, {}, b'{"sha": "../../../evil"}'), "NOT_A_HUB"),
        ((200, {}, b""), "NOT_A_HUB"),
        ((204, {}, b""), "NOT_A_HUB"),
        ((304, {}, b""), "NOT_A_HUB"),
        ((418, {}, b""), "NOT_A_HUB"),
    ],
    ids=_name,
)
@pytest.mark.parametrize("on", ["", f"/tree/{COMMIT}"])
def test_an_answer_that_makes_no_sense(
    workshop: Workshop, answer: tuple[int, dict[str, str], bytes], code: str, on: str
) -> None:
    with OtherHub(REPO, FILES, answers={f"/api/models/{REPO}{on}": answer}) as hub:
        if on and answer[0] == 404:
            # No tree: the list of siblings does.
            _arrive(workshop, hub)
        else:
            assert failure_of(Download(workshop.job(REPO, hub.url))).code == code


def test_a_long_answer_is_read_and_one_without_end_is_not(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    short = json.dumps({"sha": COMMIT, "card": "x" * 50_000_000}).encode()
    info = json.dumps({"sha": COMMIT, "card": "x" * 70_000_000}).encode()
    path = f"/api/models/{REPO}"
    with OtherHub(REPO, FILES, answers={path: (200, {}, short)}) as hub:
        assert Download(workshop.job(REPO, hub.url)).plan().commit == COMMIT
    with OtherHub(REPO, FILES, answers={path: (200, {}, info)}, chunked=True) as hub:
        assert failure_of(Download(workshop.job(REPO, hub.url))).code == "NOT_A_HUB"
    monkeypatch.setattr(listing, "MAX_ENTRIES", 3)
    with OtherHub(REPO, FILES) as hub:
        assert failure_of(Download(workshop.job(REPO, hub.url))).code == "NOT_A_HUB"


def test_a_tree_of_a_hundred_thousand_files(workshop: Workshop) -> None:
    many = [_file(f"shards/{number // 100}/part-{number}.bin", oid=f"{number:040x}") for number in range(100_000)]
    with OtherHub(REPO, FILES, entries=_and(*many)) as hub:
        _arrive(workshop, hub)


def test_a_folder_for_every_file_and_pages_without_end(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [_file(f"{number}/config.json") for number in range(20_000)]
    with OtherHub(REPO, FILES, entries=_and(*many)) as hub:
        assert len(Download(workshop.job(REPO, hub.url)).plan().files) == 20_000 + len(FILES)
    endless = OtherHub(
        REPO, FILES, page=0, next_page=lambda target, _: f'<{target}&n={len(endless.asked)}>; rel="next"'
    )
    with endless, monkeypatch.context() as patch:
        patch.setattr(listing, "MAX_PAGES", 20)
        failure = failure_of(Download(workshop.job(REPO, endless.url)))
    assert (failure.code, len(endless.asked)) == ("NOT_A_HUB", 21)


def test_a_length_that_is_right_for_a_range_without_saying_so_is_no_trap(workshop: Workshop) -> None:
    """It answers 200 with the rest instead of 206: the file arrives or the hub is refused, nothing wrong is kept."""
    with OtherHub(REPO, FILES, range_status=200) as hub:
        download = Download(workshop.job(REPO, hub.url))
        plan = download.plan()
        part = download.store.part("sha256:" + hashlib.sha256(WEIGHTS).hexdigest())
        part.write_bytes(WEIGHTS[:100_000])
        try:
            download.run(plan)
        except TransferFailed as failure:
            assert failure.code in ("CHECKSUM_MISMATCH", "NOT_A_HUB")  # noqa: PT017
    blob = download.store.blob("sha256:" + hashlib.sha256(WEIGHTS).hexdigest())
    assert not blob.exists() or blob.read_bytes() == WEIGHTS


class _Drip:
    """Accepts connections and sends the head of an answer so slowly that no time-out between bytes sees it."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._listening.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection = self._listening.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 100_000:
                try:
                    connection.send(bytes([byte]))
                except OSError:
                    return
                if self._over.wait(0.1):
                    return


def test_a_head_that_trickles_is_given_up(workshop: Workshop) -> None:
    drip = _Drip()
    settings = replace(SMALL, head_timeout_seconds=0.3, idle_timeout_seconds=0.3, idle_retries=1)
    try:
        with OtherHub(REPO, FILES) as hub:
            worker = workshop.start(workshop.job(REPO, drip.url, hub.url, settings=settings))
            ended = threading.Event()

            def watch() -> None:
                if not ended.wait(30):
                    worker.process.kill()

            watching = threading.Thread(target=watch)
            watching.start()
            last = worker.finish()
            ended.set()
            watching.join()
        assert last["type"] == "done"
    finally:
        drip.close()
