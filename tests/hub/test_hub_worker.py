"""The worker as a process: what it says, how it ends, what it leaves for the next one."""

import hashlib
import json
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace

import pytest
from faults import Fault, FaultProxy
from workshop import SMALL, RunningHub, Workshop

from kargah.hub.endpoint import Endpoint
from kargah.hub.job import Pins, read_job, write_job
from kargah.hub.plan import PLAN
from kargah.hub.worker import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, LOCK
from kargah.spec.control import EXIT_REFUSED
from kargah.spec.lock import FileLock
from kargah.spec.manifest import MANIFEST, read_manifest

WEIGHTS = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(65_536))
"""2 MiB."""
CONFIG = '{"model_type": "bert", "نام": "آزمون"}'.encode()
PERSIAN = "داده‌ها/واژه‌نامه ي قدیمی.txt"
FILES = {
    "config.json": CONFIG,
    "model.safetensors": WEIGHTS,
    PERSIAN: "سلام\n".encode(),
    "empty.txt": b"",
    "copy.json": CONFIG,
    "pytorch_model.bin": b"pickle",
    "picture.png": b"png",
}
TOTAL_BYTES = len(CONFIG) + len(WEIGHTS) + len(FILES[PERSIAN])
SLOW = Fault(on="model.safetensors", slow_bytes_per_second=400_000)


@pytest.fixture
def proxy(hub: RunningHub) -> Iterator[FaultProxy]:
    hub.add("org/tiny", FILES)
    with FaultProxy(hub.url) as running:
        yield running


def test_a_download_from_beginning_to_end(proxy: FaultProxy, workshop: Workshop) -> None:
    job = workshop.job("org/tiny", proxy.url)
    worker = workshop.run(job)
    done = worker.messages[-1]
    assert worker.process.returncode == EXIT_DONE
    assert done | {"commit": ""} == {
        "type": "done",
        "commit": "",
        "target": str(job.target),
        "files": 5,
        "totalBytes": TOTAL_BYTES,
        "bytesDownloaded": TOTAL_BYTES,
        "fetchedBytes": TOTAL_BYTES,
        "needsConversion": False,
    }
    assert [phase for phase in worker.phases if phase != "stalled"] == ["resolving", "downloading", "verifying"]
    resolved = next(message for message in worker.messages if message["type"] == "resolved")
    assert (resolved["totalBytes"], resolved["files"], resolved["resumedBytes"]) == (TOTAL_BYTES, 5, 0)
    last_progress = [message for message in worker.messages if message["type"] == "progress"][-1]
    assert (last_progress["bytesDownloaded"], last_progress["totalBytes"]) == (TOTAL_BYTES, TOTAL_BYTES)
    wanted = {path: content for path, content in FILES.items() if not path.endswith((".bin", ".png"))}
    for path, content in wanted.items():
        place = job.target / path
        assert place.read_bytes() == content
        assert not stat.S_IMODE(place.stat().st_mode) & 0o222
    assert (job.target / "config.json").samefile(job.target / "copy.json")
    manifest = read_manifest(job.target)
    assert (manifest["repoId"], manifest["commit"], manifest["endpoint"]) == ("org/tiny", done["commit"], proxy.url)
    assert set(manifest["files"]) == set(wanted)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert manifest["files"]["model.safetensors"] == {"sizeBytes": len(WEIGHTS), "digest": f"sha256:{sha256}"}
    assert (job.blobs / f"sha256-{sha256[:2]}" / sha256).read_bytes() == WEIGHTS
    assert not list((job.blobs / "parts").iterdir())
    # The config decides whether the weights are wanted: it comes first.
    assert proxy.file_requests()[0].path.endswith(("config.json", "copy.json"))


def test_after_a_kill_only_the_rest_is_fetched(proxy: FaultProxy, hub: RunningHub, workshop: Workshop) -> None:
    proxy.faults.append(replace(SLOW))
    job = workshop.job("org/tiny", proxy.url)
    worker = workshop.start(job)
    worker.until_bytes(300_000)
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait()
    (part,) = (job.blobs / "parts").glob("sha256-*.part")
    kept = part.stat().st_size
    assert 200_000 < kept < len(WEIGHTS)
    # Another proxy counts: the first one may still send to the dead.
    with FaultProxy(hub.url) as second:
        again = workshop.run(replace(job, endpoints=(Endpoint(second.url),)))
        assert again.messages[-1]["type"] == "done"
        resolved = next(message for message in again.messages if message["type"] == "resolved")
        assert kept <= resolved["resumedBytes"] <= kept + TOTAL_BYTES - len(WEIGHTS)
        assert second.file_bytes("model.safetensors") == len(WEIGHTS) - kept
        assert second.file_bytes() == again.messages[-1]["fetchedBytes"] == TOTAL_BYTES - resolved["resumedBytes"]
    assert (job.target / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("wish", ["cancel", "pause", "eof"])
def test_a_wish_ends_the_worker_and_keeps_the_part(proxy: FaultProxy, workshop: Workshop, wish: str) -> None:
    # It stands in the middle of a read that would take long to end by itself.
    proxy.faults.append(Fault(on="model.safetensors", stall_after=400_000, stall_seconds=60))
    job = workshop.job("org/tiny", proxy.url, settings=replace(SMALL, idle_timeout_seconds=60.0))
    worker = workshop.start(job)
    worker.until_bytes(400_000)
    if wish == "eof":
        worker.hang_up()
    else:
        worker.tell(wish)
    last = worker.finish()
    assert (last["type"], last["wish"], worker.process.returncode) == ("stopped", wish, EXIT_STOPPED)
    (part,) = (job.blobs / "parts").glob("sha256-*.part")
    assert part.read_bytes() == WEIGHTS[:400_000]
    assert "stalled" in worker.phases or last["bytesDownloaded"] >= 400_000


def test_a_wish_ends_the_worker_while_the_hub_does_not_answer(proxy: FaultProxy, workshop: Workshop) -> None:
    proxy.faults.append(Fault(on="/api/", stall_after=0, stall_seconds=60))
    worker = workshop.start(workshop.job("org/tiny", proxy.url, settings=replace(SMALL, metadata_timeout_seconds=60.0)))
    worker.until(lambda message: message.get("phase") == "resolving")
    worker.tell("cancel")
    assert worker.finish() == {"type": "stopped", "wish": "cancel", "bytesDownloaded": None}


def test_a_download_stays_at_its_commit_when_the_repository_moves(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop
) -> None:
    proxy.faults.append(replace(SLOW))
    job = workshop.job("org/tiny", proxy.url)
    worker = workshop.start(job)
    worker.until_bytes(100_000)
    worker.tell("pause")
    worker.finish()
    commit = next(message["commit"] for message in worker.messages if message["type"] == "resolved")
    hub.add("org/tiny", {"new.txt": b"new"})
    proxy.faults.clear()
    proxy.requests.clear()
    again = workshop.run(job)
    assert (again.messages[-1]["type"], again.messages[-1]["commit"]) == ("done", commit)
    assert not (job.target / "new.txt").exists()
    assert not [seen for seen in proxy.requests if "/api/" in seen.path]
    # Another question is asked anew.
    other = replace(job, revision="main")
    assert workshop.run(other).messages[-1]["commit"] != commit
    assert (job.target / "new.txt").exists()
    assert not (job.target.parent / ".tiny.old").exists()


def test_a_finished_download_is_done_again_without_a_byte(proxy: FaultProxy, workshop: Workshop) -> None:
    job = workshop.job("org/tiny", proxy.url)
    workshop.run(job)
    before = len(proxy.requests)
    inode = (job.target / "config.json").stat().st_ino
    again = workshop.run(job)
    assert again.messages[-1]["fetchedBytes"] == 0
    assert len(proxy.requests) == before
    assert (job.target / "config.json").stat().st_ino == inode


def test_two_repositories_fetch_one_content_once(proxy: FaultProxy, hub: RunningHub, workshop: Workshop) -> None:
    hub.add("other/same", FILES)
    proxy.faults.append(replace(SLOW, slow_bytes_per_second=1_500_000))
    first = workshop.start(workshop.job("org/tiny", proxy.url))
    first.until_bytes(100_000)
    second = workshop.start(workshop.job("other/same", proxy.url))
    second.until(lambda message: message["type"] == "resolved")
    proxy.faults.clear()
    assert (first.finish()["type"], second.finish()["type"]) == ("done", "done")
    assert proxy.file_bytes("model.safetensors") == len(WEIGHTS)
    mine, other = (workshop.root / "snapshots" / name / "model.safetensors" for name in ("org/tiny", "other/same"))
    assert mine.samefile(other)


def test_a_second_worker_of_one_download_is_refused(proxy: FaultProxy, workshop: Workshop) -> None:
    job = workshop.job("org/tiny", proxy.url)
    folder = workshop.folder(job)
    folder.mkdir(parents=True)
    with FileLock(folder / LOCK):
        worker = workshop.run(job)
    assert (worker.messages[-1]["error"], worker.process.returncode) == ("DOWNLOAD_BUSY", EXIT_REFUSED)
    assert workshop.run(job).messages[-1]["type"] == "done"


def test_a_worker_waits_for_the_death_of_an_older_one(proxy: FaultProxy, workshop: Workshop) -> None:
    job = workshop.job("org/tiny", proxy.url, settings=replace(SMALL, lock_wait_seconds=20.0))
    folder = workshop.folder(job)
    folder.mkdir(parents=True)
    with FileLock(folder / LOCK):
        worker = workshop.start(job)
        worker.until(lambda message: message.get("phase") == "resolving")
    assert worker.finish()["type"] == "done"


@pytest.mark.parametrize("path", ["../evil.txt", "/etc/evil.txt", "a\\b.txt", "C:evil.txt", "a\n.txt", "x" * 241])
def test_an_unsafe_path_refuses_the_repository(proxy: FaultProxy, workshop: Workshop, path: str) -> None:
    tree = [{"type": "file", "oid": "0" * 40, "size": 1, "path": name} for name in ("config.json", path)]
    proxy.faults.append(Fault(on="/tree/", status=200, body=json.dumps(tree).encode()))
    worker = workshop.run(workshop.job("org/tiny", proxy.url))
    assert worker.messages[-1]["error"] == "UNSAFE_PATH"
    assert worker.messages[-1]["params"] == {"path": path}
    assert not proxy.file_requests()


def test_a_model_with_its_own_code_is_refused_before_its_weights(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop
) -> None:
    hub.add("org/code", {"config.json": b'{"auto_map": {"AutoModel": "m.M"}}', "model.safetensors": b"other"})
    worker = workshop.run(workshop.job("org/code", proxy.url))
    assert (worker.messages[-1]["error"], worker.process.returncode) == ("NEEDS_REMOTE_CODE", EXIT_FAILED)
    assert not worker.messages[-1]["resumable"]
    assert [seen.path.rpartition("/")[2] for seen in proxy.file_requests()] == ["config.json"]


def test_too_little_space_is_said_before_the_first_byte(proxy: FaultProxy, workshop: Workshop) -> None:
    job = workshop.job("org/tiny", proxy.url, settings=replace(SMALL, disk_margin_bytes=1 << 60))
    error = workshop.run(job).messages[-1]
    assert (error["error"], error["resumable"]) == ("DISK_FULL", True)
    assert error["params"]["neededBytes"] == TOTAL_BYTES + (1 << 60)
    assert 0 < error["params"]["freeBytes"] < 1 << 60
    assert not proxy.file_requests()


def test_pins_win(proxy: FaultProxy, workshop: Workshop) -> None:
    sha256 = hashlib.sha256(CONFIG).hexdigest()
    commit = workshop.run(workshop.job("org/tiny", proxy.url)).messages[-1]["commit"]
    pins = Pins(commit=commit, digests={"config.json": f"sha256:{sha256}", "picture.png": "sha256:" + "0" * 64})
    wrong = workshop.run(workshop.job("org/tiny", proxy.url, pins=pins)).messages[-1]
    assert (wrong["error"], wrong["params"]["file"]) == ("CHECKSUM_MISMATCH", "picture.png")
    pins = replace(pins, digests={"config.json": f"sha256:{sha256}"})
    job = workshop.job("org/tiny", proxy.url, pins=pins)
    assert workshop.run(job).messages[-1]["type"] == "done"
    assert read_manifest(job.target)["files"]["config.json"]["digest"] == f"sha256:{sha256}"
    pins = replace(pins, digests={"model.safetensors": "sha256:" + "0" * 64})
    other = workshop.run(workshop.job("org/tiny", proxy.url, pins=pins)).messages[-1]
    assert (other["error"], other["params"]["expected"]) == ("CHECKSUM_MISMATCH", "sha256:" + "0" * 64)
    absent = workshop.run(workshop.job("org/tiny", proxy.url, pins=Pins(digests={"no.txt": "sha256:0"})))
    assert absent.messages[-1]["error"] == "FILE_NOT_FOUND"


def test_a_commit_that_is_not_the_pinned_one_is_refused(proxy: FaultProxy, workshop: Workshop) -> None:
    info = {"id": "org/tiny", "sha": "1" * 40, "siblings": []}
    proxy.faults += [
        Fault(on="/revision/", status=200, body=json.dumps(info).encode()),
        Fault(
            on="/tree/", status=200, body=b'[{"type": "file", "oid": "%s", "size": 1, "path": "a.json"}]' % (b"0" * 40)
        ),
    ]
    worker = workshop.run(workshop.job("org/tiny", proxy.url, pins=Pins(commit="2" * 40)))
    assert worker.messages[-1]["error"] == "CHECKSUM_MISMATCH"


def test_a_data_set_by_patterns_and_by_itself(hub: RunningHub, workshop: Workshop) -> None:
    files = {
        "data/train.csv": "متن\n".encode(),
        "data/test.parquet": b"PAR1",
        "README.md": b"#",
        "a.py": b"",
        "x.png": b"",
    }
    hub.add("org/set", files, kind="datasets")
    job = workshop.job("org/set", hub.url, kind="dataset")
    assert workshop.run(job).messages[-1]["type"] == "done"
    assert set(read_manifest(job.target)["files"]) == {"data/train.csv", "data/test.parquet", "README.md"}
    job = workshop.job("org/set", hub.url, kind="dataset", patterns=("*.csv",))
    assert workshop.run(job).messages[-1]["type"] == "done"
    assert set(read_manifest(job.target)["files"]) == {"data/train.csv"}
    assert {entry.name for entry in job.target.rglob("*") if entry.is_file()} == {MANIFEST, "train.csv"}


def test_the_token_comes_from_the_environment(proxy: FaultProxy, workshop: Workshop) -> None:
    job = workshop.job("org/tiny", proxy.url)
    folder = workshop.folder(job)
    folder.mkdir(parents=True)
    write_job(folder / "job.json", job, token_envs={proxy.url: "A_TOKEN"})
    os.environ["A_TOKEN"] = "secret"
    try:
        assert read_job(folder / "job.json").endpoints == (Endpoint(proxy.url, "secret"),)
    finally:
        del os.environ["A_TOKEN"]
    assert stat.S_IMODE((folder / "job.json").stat().st_mode) == 0o600
    assert "secret" not in (folder / "job.json").read_text()


def test_a_job_that_makes_no_sense(workshop: Workshop) -> None:
    worker = workshop.run(workshop.job("org/tiny", "ftp://hub.example"))
    assert worker.messages[-1]["error"] == "JOB_INVALID"


def test_progress_counts_exactly_and_speaks_of_speed(proxy: FaultProxy, workshop: Workshop) -> None:
    proxy.faults.append(replace(SLOW, slow_bytes_per_second=2_000_000))
    worker = workshop.run(workshop.job("org/tiny", proxy.url))
    moments = [message for message in worker.messages if message["type"] == "progress"]
    counted = [moment["bytesDownloaded"] for moment in moments]
    assert counted == sorted(counted)
    assert counted[-1] == TOTAL_BYTES
    assert any(moment["speed"] > 0 and moment["etaSeconds"] is not None for moment in moments[:-1])
    assert {moment["file"] for moment in moments} >= {"model.safetensors"}
    assert len(moments) > 5


def test_a_plan_that_is_damaged_is_made_again(proxy: FaultProxy, workshop: Workshop) -> None:
    job = workshop.job("org/tiny", proxy.url)
    workshop.run(job)
    (workshop.folder(job) / PLAN).write_text("{")
    assert workshop.run(job).messages[-1]["type"] == "done"
    assert json.loads((workshop.folder(job) / PLAN).read_text())["totalBytes"] == TOTAL_BYTES
