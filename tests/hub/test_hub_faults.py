"""Everything a network does to a transfer, over real sockets, in this process and with a proxy before the hub."""

import time
from email.utils import formatdate
from pathlib import Path

import pytest
from download import FILE, WEIGHTS, Download, failure_of
from faults import Fault, FaultProxy
from workshop import SMALL, RunningHub, Workshop

from kargah.hub.failure import TransferFailed


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_a_link_that_drops_again_and_again_completes(proxy: FaultProxy, download: Download, reset: bool) -> None:
    proxy.faults.append(Fault(on=FILE, cut_every=50_000, reset=reset))
    download.run()
    assert download.content() == WEIGHTS
    assert len(proxy.file_requests(FILE)) >= 13
    if not reset:
        # With a reset the system may throw away bytes that were received and not read yet.
        assert proxy.file_bytes(FILE) == len(WEIGHTS)
    assert download.lengths == sorted(download.lengths)


def test_a_part_goes_on_where_it_stands(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    download.run()
    assert download.content() == WEIGHTS
    assert proxy.file_bytes(FILE) == len(WEIGHTS) - 300_000
    assert download.meter.network_bytes == len(WEIGHTS) - 300_000 + 22
    assert download.meter.bytes_downloaded == len(WEIGHTS) + 22


def test_a_flipped_byte_is_never_accepted(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, flip_at=123_456))
    failure = failure_of(download)
    assert (failure.code, failure.params["file"]) == ("CHECKSUM_MISMATCH", FILE)
    assert not download.store.blob(failure.params["expected"]).exists()
    assert not download.part.exists()


def test_a_flipped_byte_in_a_small_file_is_never_accepted(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on="config.json", flip_at=3))
    failure = failure_of(download)
    assert (failure.code, failure.params["file"]) == ("CHECKSUM_MISMATCH", "config.json")


def test_damage_in_a_resumed_part_costs_one_fresh_start(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(b"x" * 300_000)
    download.run()
    assert download.content() == WEIGHTS
    assert proxy.file_bytes(FILE) == len(WEIGHTS) - 300_000 + len(WEIGHTS)


def test_damage_after_a_resume_and_again_fails(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    proxy.faults.append(Fault(on=FILE, flip_at=400_000))
    assert failure_of(download).code == "CHECKSUM_MISMATCH"
    assert len(proxy.file_requests(FILE)) == 2


def test_damage_at_one_mirror_is_mended_by_the_other(proxy: FaultProxy, hub: RunningHub, workshop: Workshop) -> None:
    proxy.faults.append(Fault(on=FILE, flip_at=400_000))
    download = Download(workshop.job("org/tiny", proxy.url, hub.url))
    download.run()
    assert download.content() == WEIGHTS


def test_a_consistent_short_length_is_refused_at_the_headers(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, shorten=1000))
    failure = failure_of(download)
    assert failure.code == "CHECKSUM_MISMATCH"
    assert "639000 bytes instead of 640000" in failure.detail
    assert not download.part.read_bytes()


def test_a_consistent_short_range_is_refused_at_the_headers(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    proxy.faults.append(Fault(on=FILE, shorten=1000))
    assert failure_of(download).code == "CHECKSUM_MISMATCH"
    assert download.part.read_bytes() == WEIGHTS[:300_000]


def test_an_overrun_is_cut_off(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, surplus=b"more"))
    assert failure_of(download).code == "CHECKSUM_MISMATCH"


def test_a_range_that_is_ignored_starts_over_with_progress_corrected(proxy: FaultProxy, download: Download) -> None:
    proxy.faults += [Fault(on=FILE, cut_every=400_000, times=1), Fault(on=FILE, ignore_range=True)]
    download.run()
    assert download.content() == WEIGHTS
    assert proxy.file_bytes(FILE) == 400_000 + len(WEIGHTS)
    assert download.meter.bytes_downloaded == len(WEIGHTS) + 22


def test_a_server_that_ignores_ranges_and_never_gets_further_is_given_up(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, cut_every=100_000, ignore_range=True))
    assert failure_of(download).code == "HUB_UNREACHABLE"
    assert len(proxy.file_requests(FILE)) == 1 + SMALL.idle_retries + 1


def test_an_answer_from_another_byte_is_refused(proxy: FaultProxy, download: Download) -> None:
    download.part.write_bytes(WEIGHTS[:300_000])
    proxy.faults.append(
        Fault(on=FILE, status=206, headers={"Content-Range": f"bytes 0-9/{len(WEIGHTS)}"}, body=WEIGHTS[:10])
    )
    assert failure_of(download).code == "NOT_A_HUB"
    assert download.part.read_bytes() == WEIGHTS[:300_000]


@pytest.mark.parametrize("retry_after", ["1", "a date"])
def test_rate_limits_are_waited_for_and_shown(proxy: FaultProxy, download: Download, retry_after: str) -> None:
    moment = formatdate(time.time() + 2, usegmt=True) if retry_after == "a date" else retry_after
    proxy.faults.append(Fault(on=FILE, status=429, headers={"Retry-After": moment}, times=1))
    download.run()
    assert download.content() == WEIGHTS
    assert "rateLimited" in download.phases
    assert download.phases[-1] != "rateLimited"


def test_a_busy_server_is_asked_again(proxy: FaultProxy, download: Download) -> None:
    proxy.faults += [
        Fault(on="/revision/", status=503, times=2),
        Fault(on="/api/models/org/tiny", status=502, times=1),
        # Twice: on the kept connection, where it says nothing, and on a new one.
        Fault(on="/tree/", refuse=True, times=2),
        Fault(on=FILE, status=503, times=3),
        Fault(on="config.json", refuse=True, times=3),
    ]
    download.run()
    assert download.content() == WEIGHTS
    assert len(download.waits) == 2


def test_a_busy_metadata_server_is_given_up_in_the_end(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on="/api/", status=500))
    assert failure_of(download).code == "HUB_UNREACHABLE"
    assert len(download.waits) == SMALL.idle_retries


def test_rate_limited_metadata_is_shown(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on="/api/", status=429, headers={"Retry-After": "1"}, times=1))
    download.run()
    assert download.waits == [(1.0, True)]


def test_silence_is_shown_as_stalled_and_ends_in_a_new_connection(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on=FILE, stall_after=200_000, stall_seconds=20, times=1))
    download.run()
    assert download.content() == WEIGHTS
    assert "stalled" in download.phases
    assert proxy.file_bytes(FILE) == len(WEIGHTS)


def test_nobody_there(workshop: Workshop) -> None:
    failure = failure_of(Download(workshop.job("org/tiny", "http://127.0.0.1:1")))
    assert (failure.code, failure.resumable) == ("HUB_UNREACHABLE", True)


PORTAL = Fault(on="/", status=200, headers={"Content-Type": "text/html"}, body=b"<html>Log in</html>")


def test_a_captive_portal_is_no_hub(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(PORTAL)
    assert failure_of(download).code == "NOT_A_HUB"


def test_a_captive_portal_in_the_middle_is_no_hub(proxy: FaultProxy, download: Download) -> None:
    plan = download.plan()
    proxy.faults.append(PORTAL)
    with pytest.raises(TransferFailed) as caught:
        download.run(plan)
    assert (caught.value.code, caught.value.resumable) == ("NOT_A_HUB", True)


def test_json_that_names_no_commit_is_no_hub(proxy: FaultProxy, download: Download) -> None:
    proxy.faults.append(Fault(on="/api/", status=200, body=b'{"id": "org/tiny"}'))
    assert failure_of(download).code == "NOT_A_HUB"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(on="/api/", status=404, headers={"X-Error-Code": "RepoNotFound"}), "REPO_NOT_FOUND"),
        (Fault(on="/api/", status=401, headers={"X-Error-Code": "RepoNotFound"}), "REPO_NOT_FOUND"),
        (Fault(on="/api/", status=404, headers={"X-Error-Code": "RevisionNotFound"}), "REVISION_NOT_FOUND"),
        (Fault(on="/api/", status=403, headers={"X-Error-Code": "GatedRepo"}), "HUB_UNAUTHORIZED"),
        (Fault(on="/api/", status=401), "HUB_UNAUTHORIZED"),
        (Fault(on="/api/", status=403), "HUB_UNAUTHORIZED"),
        (Fault(on=FILE, status=404, headers={"X-Error-Code": "EntryNotFound"}), "FILE_NOT_FOUND"),
        (Fault(on=FILE, status=403), "HUB_UNAUTHORIZED"),
        (Fault(on=FILE, status=511, headers={"Content-Type": "text/html"}), "NOT_A_HUB"),
    ],
)
def test_refusals_have_their_codes(proxy: FaultProxy, download: Download, fault: Fault, code: str) -> None:
    proxy.faults.append(fault)
    assert failure_of(download).code == code


def test_a_mirror_that_dies_half_way_is_followed_by_the_next(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop
) -> None:
    with FaultProxy(hub.url) as second:
        download = Download(workshop.job("org/tiny", proxy.url, second.url))
        plan = download.plan()
        proxy.faults += [Fault(on=FILE, cut_every=250_000, times=1), Fault(on="/resolve/", refuse=True)]
        download.run(plan)
        assert download.content() == WEIGHTS
        assert proxy.file_bytes(FILE) == 250_000
        assert second.file_bytes(FILE) == len(WEIGHTS) - 250_000
        assert second.file_requests(FILE)[0].headers["range"] == "bytes=250000-"


def test_metadata_comes_from_the_next_endpoint_when_the_first_is_dead(hub: RunningHub, workshop: Workshop) -> None:
    hub.add("org/tiny", {"config.json": b"{}", FILE: WEIGHTS})
    download = Download(workshop.job("org/tiny", "http://127.0.0.1:1", hub.url))
    plan = download.plan()
    assert plan.endpoint == hub.url
    download.run(plan)
    assert download.content() == WEIGHTS


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_with_numbers(proxy: FaultProxy, download: Download) -> None:
    download.part.symlink_to("/dev/full")
    failure = failure_of(download)
    assert (failure.code, failure.resumable) == ("DISK_FULL", True)
    assert failure.params["neededBytes"] >= len(WEIGHTS)
    assert failure.params["freeBytes"] > 0


def test_nothing_is_fetched_for_an_empty_file_or_a_known_one(
    proxy: FaultProxy, hub: RunningHub, workshop: Workshop
) -> None:
    Download(workshop.job("org/tiny", proxy.url)).run()
    hub.add(
        "other/same", {"config.json": b'{"model_type": "bert"}', "copy/model.safetensors": WEIGHTS, "empty.txt": b""}
    )
    before = proxy.file_bytes()
    download = Download(workshop.job("other/same", proxy.url))
    download.run()
    assert proxy.file_bytes() == before
    assert download.meter.bytes_downloaded == len(WEIGHTS) + 22
    assert download.store.blob("git-sha1:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391").read_bytes() == b""
