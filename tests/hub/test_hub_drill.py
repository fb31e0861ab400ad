"""A drill: one download, its worker and its server killed at moments drawn by lot, until it is done all the same.

`KARGAH_DRILL_KILLS` and `KARGAH_DRILL_SEED` make it longer or another one.
"""

import os
import random
import signal
import time
from collections.abc import Callable

import psutil
from event_source import EventSource
from faults import Fault, FaultProxy
from living import BERT, Living, MakeLiving
from workshop import RunningHub

from kargah.ground.home import folder_name
from kargah.hub.job import TransferSettings
from kargah.spec.manifest import verify_folder

NUM_KILLS = int(os.environ.pop("KARGAH_DRILL_KILLS", "6"))
SEED = int(os.environ.pop("KARGAH_DRILL_SEED", "1"))
SHARD_BYTES = 5_000_000
PATH = "/api/models/download/progress"


def test_a_download_outlives_kills_at_random_moments(hub: RunningHub, make_living: MakeLiving) -> None:
    draw = random.Random(SEED)
    shards = {f"model-0000{number}-of-00004.safetensors": draw.randbytes(SHARD_BYTES) for number in range(1, 5)}
    files = {"config.json": b'{"model_type": "bert"}', **shards}
    hub.add(BERT, files)
    total = sum(map(len, files.values()))
    with FaultProxy(hub.url, Fault(on=".safetensors", slow_bytes_per_second=800_000)) as proxy:
        living = make_living(hub_endpoint=proxy.url)
        begun = living.client.post("/api/models/download/start", {"modelId": BERT})
        sources = [EventSource(f"{living.url}{PATH}?modelId={BERT}") for _ in range(2)]
        workers: set[int] = set()
        for number in range(NUM_KILLS):
            least = total * (number + draw.random()) / (NUM_KILLS + 1)
            sources[0].wait_for(lambda data, least=least: data["bytesDownloaded"] >= least)
            server = draw.random() < 0.4
            worker = _worker(living)
            if worker is not None:
                workers.add(worker.pid)
            if server:
                living.kill()
                if worker is not None:
                    # Its standard input has ended: it goes by itself, soon.
                    worker.wait(5)
                living.start()
                again = living.client.post("/api/models/download/start", {"modelId": BERT})
                assert (again["started"], again["downloadId"]) == (False, begun["downloadId"])
            elif worker is not None:
                worker.send_signal(signal.SIGKILL)
        heard = [source.wait_for_end(180) for source in sources]

        chunk = TransferSettings().chunk_bytes
        assert proxy.file_bytes() <= 1.05 * total + chunk * (NUM_KILLS + 1)
    for events in heard:
        shown = [event.data["progress"] for event in events]
        assert shown == sorted(shown)
        assert {event.data["downloadId"] for event in events} == {begun["downloadId"]}
        assert {event.data["totalBytes"] for event in events} <= {None, total}
        assert [event.data["status"] for event in events].count("done") == 1
        last = events[-1].data
        assert (last["status"], last["progress"], last["bytesDownloaded"]) == ("done", 100, total)
        ids = [int(event.id) for event in events]
        assert ids == sorted(set(ids))
    assert {source.statuses[-1] for source in sources} == {204}

    (folder,) = (living.home / "models" / folder_name(BERT)).iterdir()
    verify_folder(folder)
    for path, content in files.items():
        assert (folder / path).read_bytes() == content
    assert not list((living.home / "blobs" / "parts").iterdir())
    assert not [entry for entry in (living.home / "downloads").iterdir() if entry.is_dir()]
    assert living.process is not None
    server_process = psutil.Process(living.process.pid)
    _settled(lambda: not server_process.children(recursive=True))
    assert not any(psutil.pid_exists(pid) for pid in workers)


def _worker(living: Living) -> psutil.Process | None:
    assert living.process is not None
    for child in psutil.Process(living.process.pid).children():
        try:
            if "kargah.hub.worker" in child.cmdline():
                return child
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return None


def _settled(condition: Callable[[], bool], timeout_seconds: float = 10.0) -> None:
    until = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
