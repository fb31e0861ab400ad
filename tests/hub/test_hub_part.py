"""A part: what is counted is written, what is written is hashed, and a flush that fails is never lost."""

import errno
import hashlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kargah.hub import part as part_module
from kargah.hub.blobs import BlobStore
from kargah.hub.connection import Answer, ConnectionFailed
from kargah.hub.job import TransferSettings
from kargah.hub.part import Part
from kargah.hub.plan import Plan, PlannedFile
from kargah.hub.progress import Meter

CONTENT = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(200_000))
"""6.4 MB: more than the buffers of a part hold together."""


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    made = BlobStore(tmp_path / "blobs")
    made.prepare()
    return made


def _planned(content: bytes) -> PlannedFile:
    return PlannedFile("model.safetensors", len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")


def _open(store: BlobStore, content: bytes) -> tuple[Part, Meter]:
    file = _planned(content)
    meter = Meter(Plan("org/tiny", "model", "", "0" * 40, (file,)), TransferSettings())
    return Part(store, file, meter, threading.Event()), meter


def _append(part: Part, content: bytes, step: int) -> None:
    while content:
        space = part.space(step)
        assert 1 <= len(space) <= step
        num_bytes = min(len(space), len(content))
        space[:num_bytes] = content[:num_bytes]
        part.append(num_bytes)
        content = content[num_bytes:]


@pytest.mark.parametrize("step", [1 << 20, 256 * 1024, 16_384, 9_973])
@pytest.mark.parametrize("length", [1, 40_000, 1_048_577, len(CONTENT)])
def test_what_is_counted_is_on_disk_and_hashed(store: BlobStore, length: int, step: int) -> None:
    content = CONTENT[:length]
    part, meter = _open(store, content)
    with part:
        _append(part, content[: length // 2], step)
        assert store.part(_planned(content).digest).read_bytes() == content[: length // 2]
        assert part.length == meter.bytes_downloaded == meter.network_bytes == length // 2
        _append(part, content[length // 2 :], step)
        assert part.digest() == _planned(content).digest
        part.keep()
    assert store.blob(_planned(content).digest).read_bytes() == content


def test_a_part_goes_on_and_starts_over(store: BlobStore) -> None:
    with _open(store, CONTENT)[0] as part:
        _append(part, CONTENT[:3_000_001], 100_000)
    part, meter = _open(store, CONTENT)
    with part:
        assert (part.resumed, part.length, meter.network_bytes) == (True, 3_000_001, 0)
        _append(part, CONTENT[3_000_001:4_000_000], 100_000)
        part.restart()
        assert (part.length, part.furthest, meter.bytes_downloaded) == (0, 4_000_000, 0)
        _append(part, CONTENT, 100_000)
        assert part.digest() == _planned(CONTENT).digest


def test_a_flush_that_failed_is_said_before_the_blob_is_there(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(part_module, "_flush", fail)
    monkeypatch.setattr(part_module, "_FLUSHED_BYTES", 1_000_000)
    part, _ = _open(store, CONTENT)

    def bring() -> None:
        with part:
            _append(part, CONTENT, 256 * 1024)
            part.keep()

    with pytest.raises(OSError, match="the disk is gone"):
        bring()
    assert not store.blob(_planned(CONTENT).digest).exists()


def test_a_large_part_is_flushed_while_it_grows(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(part_module, "_flush", flushed.append)
    monkeypatch.setattr(part_module, "_FLUSHED_BYTES", 1_000_000)
    part, _ = _open(store, CONTENT)
    with part:
        _append(part, CONTENT, 256 * 1024)
        part.keep()
    assert flushed


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    here.settimeout(5)
    yield here, there
    here.close()
    there.close()


def _answer(here: socket.socket) -> Answer:
    body = http.client.HTTPResponse(here, method="GET")
    body.begin()
    return Answer(body.status, 0, {}, {}, body)


def test_bytes_are_handed_over_as_they_come(wire: tuple[socket.socket, socket.socket]) -> None:
    here, there = wire
    there.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    answer = _answer(here)
    space = memoryview(bytearray(1 << 20))
    # The rest has not been sent, and nobody waits for it.
    assert (answer.read_into(space), bytes(space[:3])) == (3, b"abc")
    there.sendall(b"defghijHTTP/1.1 next answer")
    assert (answer.read_into(space), bytes(space[:7])) == (7, b"defghij")
    assert answer.read_into(space) == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nabcdefg",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabcdefg",
    ],
    ids=["chunked", "without a length", "torn off"],
)
def test_a_body_ends_however_it_is_framed(wire: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    here, there = wire
    there.sendall(sent)
    there.shutdown(socket.SHUT_WR)
    answer = _answer(here)
    space, found = memoryview(bytearray(5)), b""
    while num_bytes := answer.read_into(space):
        found += space[:num_bytes]
    assert found == b"abcdefg"
    assert answer.read_into(space) == 0


def test_silence_is_a_failure_of_the_connection(wire: tuple[socket.socket, socket.socket]) -> None:
    here, there = wire
    there.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    answer = _answer(here)
    space = memoryview(bytearray(100))
    assert answer.read_into(space) == 3
    here.settimeout(0.01)
    with pytest.raises(ConnectionFailed, match="TimeoutError"):
        answer.read_into(space)
