"""Checkpoints of a run that really trained: they load anywhere, go on exactly, serve as a base, and can be removed."""

import json
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from living import PATIENCE_SECONDS
from prepared import CONFIG, STEPS, Finished, Prepared
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kargah.client import Client, Conflict, NotFound, TrainingConfig
from kargah.spec.layout import checkpoint_name

TEXTS = ["خیلی خوب بود", "نمی‌خواهم دوباره بخرم", "بد نبود"]


@pytest.fixture(scope="module")
def client(prepared: Prepared) -> Client:
    return prepared.live.client


def _checkpoint(prepared: Prepared, finished: Finished, step: int) -> str:
    rows = prepared.live.client.get("/api/training/assets", runId=finished.run_id)
    return str(next(row["id"] for row in rows if row["step"] == step))


def _logits(folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits


def test_what_was_downloaded_loads_with_plain_transformers(
    prepared: Prepared, finished: Finished, client: Client, tmp_path: Path
) -> None:
    checkpoint_id = _checkpoint(prepared, finished, STEPS)
    told: list[tuple[int, int | None]] = []
    place = client.checkpoints.download(checkpoint_id, to=tmp_path, on_progress=lambda *one: told.append(one))
    assert place.suffix == ".zip"
    assert told[-1] == (place.stat().st_size, place.stat().st_size)
    zipfile.ZipFile(place).extractall(tmp_path / "model")
    ours = prepared.folder(finished.run_id).checkpoints / checkpoint_name(STEPS)
    assert torch.equal(_logits(tmp_path / "model"), _logits(ours))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    details = client.checkpoints.get(checkpoint_id)
    assert f"{details.metrics['accuracy']:.6g}" in card
    assert details.versions["torch"] in card
    assert (details.attempt, details.run_id) == (1, finished.run_id)
    assert details.base_model is not None
    assert details.base_model.revision
    assert details.datasets[0].version
    assert details.code_version


def test_a_file_goes_on_where_the_line_broke(prepared: Prepared, finished: Finished, tmp_path: Path) -> None:
    checkpoint_id = _checkpoint(prepared, finished, STEPS)
    ours = prepared.folder(finished.run_id).checkpoints / checkpoint_name(STEPS) / "model.safetensors"
    with _line_that_breaks(prepared.live.port, ours.stat().st_size // 3) as (url, ranges), Client(url) as broken:
        place = broken.checkpoints.download(checkpoint_id, file="model.safetensors", to=tmp_path / "part")
    assert place.read_bytes() == ours.read_bytes()
    assert len(ranges) >= 3
    assert ranges[0] is None
    assert all(asked is not None for asked in ranges[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


@contextmanager
def _line_that_breaks(port: int, after_bytes: int) -> Iterator[tuple[str, list[str | None]]]:
    """A way to the server that breaks after so many bytes of every answer, and the ranges that were asked for."""
    ranges: list[str | None] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listening.accept()
                with near, socket.create_connection(("127.0.0.1", port)) as far:
                    asked = near.recv(65536)
                    found = re.search(rb"^Range: bytes=(\d+)-", asked, re.IGNORECASE | re.MULTILINE)
                    ranges.append(found[1].decode() if found else None)
                    far.sendall(re.sub(rb"Connection: [^\r]+", b"Connection: close", asked, flags=re.IGNORECASE))
                    sent = 0
                    while sent < after_bytes and (data := far.recv(min(65536, after_bytes - sent))):
                        near.sendall(data)
                        sent += len(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", ranges
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(30)


def test_a_deletion_while_a_zip_is_sent(prepared: Prepared, finished: Finished, client: Client, tmp_path: Path) -> None:
    """Of a run of its own, which the others do not need."""
    run_id = prepared.start(name="کوتاه", config={**CONFIG, "maxSteps": 2, "evalEverySteps": 2})
    client.runs.wait(run_id)
    (checkpoint,) = client.checkpoints.list(run_id=run_id)
    path = f"{prepared.live.url}/api/training/checkpoints/{checkpoint.id}/download"
    with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as http, http.stream("GET", path) as answer:
        parts = answer.iter_raw(1024)
        content = next(parts)
        assert client.checkpoints.delete(checkpoint.id).freed_bytes > 0
        content += b"".join(parts)
    assert len(content) == int(answer.headers["content-length"])
    (tmp_path / "x.zip").write_bytes(content)
    assert zipfile.ZipFile(tmp_path / "x.zip").testzip() is None
    with pytest.raises(NotFound, match="CHECKPOINT_NOT_FOUND"):
        client.checkpoints.get(checkpoint.id)


def test_a_restored_run_goes_on_bit_for_bit(prepared: Prepared, finished: Finished, client: Client) -> None:
    middle = STEPS - CONFIG["checkpointEverySteps"]
    checkpoint_id = _checkpoint(prepared, finished, middle)
    started = client.checkpoints.restore(checkpoint_id, name="ادامه")
    with pytest.raises(Conflict, match="IN_USE"):
        client.checkpoints.delete(checkpoint_id)
    kept = json.loads(prepared.folder(finished.run_id).kept.read_text(encoding="utf-8"))
    assert kept == {checkpoint_name(middle): [f"run:{started.run_id}"]}
    ended = client.runs.wait(started.run_id)
    assert (ended.status, ended.step, ended.name) == ("completed", STEPS, "ادامه")
    first, second = prepared.losses(finished.run_id), prepared.losses(started.run_id)
    assert second == {step: loss for step, loss in first.items() if step > middle}
    details = client.checkpoints.get(checkpoint_id)
    assert [(one.run_id, one.relation) for one in details.descendants] == [(started.run_id, "restore")]
    weights = [
        (prepared.folder(run_id).checkpoints / checkpoint_name(STEPS) / "model.safetensors").read_bytes()
        for run_id in (finished.run_id, started.run_id)
    ]
    assert weights[0] == weights[1]

    told = client.checkpoints.prune(started.run_id, keep_last=0, keep_best=False, dry_run=True)
    assert told.removed
    assert client.checkpoints.prune(started.run_id, keep_last=0, keep_best=False) == told
    assert client.checkpoints.list(run_id=started.run_id) == []
    assert not list(prepared.folder(started.run_id).checkpoints.iterdir())


def test_a_clone_takes_a_checkpoint_as_its_base(prepared: Prepared, finished: Finished, client: Client) -> None:
    checkpoint_id = _checkpoint(prepared, finished, STEPS)
    changed = TrainingConfig(max_steps=3, learning_rate=None, log_every_steps=1, eval_every_steps=3)
    started = client.runs.clone(finished.run_id, base_model=checkpoint_id, config=changed)
    ended = client.runs.wait(started.run_id)
    assert (ended.status, ended.base_model, ended.step) == ("completed", checkpoint_id, 3)
    assert ended.datasets == [prepared.opinions]
    assert ended.config is not None
    assert (ended.config["batchSize"], ended.config["learningRate"]) == (CONFIG["batchSize"], 5e-5)
    again = client.runs.clone(started.run_id, name="باز هم")
    assert client.runs.wait(again.run_id).base_model == checkpoint_id
    ours = {started.run_id, again.run_id}
    found = client.checkpoints.get(checkpoint_id).descendants
    relations = [(one.run_id, one.relation) for one in found if one.run_id in ours]
    assert relations == [(started.run_id, "base"), (again.run_id, "base")]


def test_the_command(prepared: Prepared, finished: Finished, tmp_path: Path) -> None:
    live, checkpoint_id = prepared.live, _checkpoint(prepared, finished, STEPS)

    def told(*arguments: str) -> Any:
        done = live.run("checkpoints", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert told("pin", checkpoint_id)["pinned"] is True
    refused = live.run("checkpoints", "delete", checkpoint_id, "--yes")
    assert (refused.returncode, "IN_USE" in refused.stderr) == (3, True)
    assert told("unpin", checkpoint_id[:12])["pinned"] is False
    shown = live.run("checkpoints", "show", checkpoint_id, lang="fa")
    assert checkpoint_id in shown.stdout
    done = told("download", checkpoint_id, "--to", str(tmp_path), "--training")
    assert "optimizer.pt" in zipfile.ZipFile(done["path"]).namelist()
    assert done["sizeBytes"] == Path(done["path"]).stat().st_size
    dry = told("prune", finished.run_id, "--keep-last", "0", "--dry-run")
    assert dry["removed"]
    asks = live.run("checkpoints", "prune", finished.run_id, "--keep-last", "0")
    assert asks.returncode == 2
    assert told("prune", finished.run_id, "--keep-last", "99", "--yes")["removed"] == []
    restored = told("restore", checkpoint_id, "--name", "از فرمان")
    assert live.client.runs.wait(restored["runId"]).name == "از فرمان"


def test_two_who_download_at_once(prepared: Prepared, finished: Finished, client: Client, tmp_path: Path) -> None:
    checkpoint_id = _checkpoint(prepared, finished, STEPS)
    places: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda number: places.append(
                client.checkpoints.download(checkpoint_id, to=tmp_path / f"{number}.zip")
            ),
            args=(number,),
        )
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert len({place.read_bytes() for place in places}) == 1
    assert len(places) == 4
