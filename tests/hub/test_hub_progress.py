"""What is said about a transfer's speed and silence, and how long it waits."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from kargah.hub.job import TransferSettings
from kargah.hub.plan import Plan, PlannedFile
from kargah.hub.progress import Meter
from kargah.hub.retry import backoff_seconds, retry_after_seconds

BIG = PlannedFile("model.safetensors", 1000, "sha256:" + "a" * 64)
SMALL = PlannedFile("config.json", 24, "git-sha1:" + "b" * 40)
PLAN = Plan("org/tiny", "model", "http://hub.example", "c" * 40, (BIG, SMALL, PlannedFile("copy", 24, SMALL.digest)))


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_equal_contents_count_once() -> None:
    assert PLAN.total_bytes == 1024
    assert [file.path for file in PLAN.contents] == ["model.safetensors", "config.json"]


def test_speed_counts_the_network_over_a_window_and_nothing_else() -> None:
    clock = Clock()
    meter = Meter(PLAN, TransferSettings(speed_window_seconds=10.0), clock)
    meter.place(BIG, 500)
    assert (meter.read().bytes_downloaded, meter.read().speed, meter.read().eta_seconds) == (500, 0.0, None)
    for _ in range(20):
        clock.now += 1
        meter.received(BIG, 10)
        progress = meter.read()
    assert (progress.bytes_downloaded, progress.speed, progress.eta_seconds) == (700, 10.0, 33)
    assert (progress.file, progress.phase) == (BIG.path, "downloading")
    for _ in range(12):
        clock.now += 1
        meter.received(SMALL, 2)
        progress = meter.read()
    assert progress.speed == 2.0
    assert meter.network_bytes == 224


def test_progress_is_taken_back_when_a_file_starts_over() -> None:
    meter = Meter(PLAN, TransferSettings(), Clock())
    meter.received(BIG, 700)
    meter.place(BIG, 0)
    meter.received(BIG, 100)
    assert (meter.bytes_downloaded, meter.remaining_bytes, meter.network_bytes) == (100, 924, 800)


def test_silence_becomes_stalled_and_bytes_end_it() -> None:
    clock = Clock()
    meter = Meter(PLAN, TransferSettings(stalled_after_seconds=5.0), clock)
    meter.received(BIG, 10)
    clock.now += 4.9
    assert meter.read().phase == "downloading"
    clock.now += 0.1
    stalled = meter.read()
    assert (stalled.phase, stalled.eta_seconds) == ("stalled", None)
    meter.touch()
    assert meter.read().phase == "downloading"


def test_a_rate_limit_is_said_until_it_ends_or_bytes_come() -> None:
    clock = Clock()
    meter = Meter(PLAN, TransferSettings(stalled_after_seconds=5.0), clock)
    meter.waiting(30, rate_limited=False)
    assert meter.read().phase == "downloading"
    meter.waiting(30, rate_limited=True)
    limited = meter.read()
    assert (limited.phase, limited.eta_seconds) == ("rateLimited", None)
    assert limited.until is not None
    assert limited.until.endswith("Z")
    clock.now += 1
    meter.received(SMALL, 1)
    assert meter.read().phase == "downloading"
    clock.now += 6
    assert meter.read().phase == "rateLimited"
    clock.now += 30
    assert meter.read().phase == "stalled"


def test_backoff_grows_to_its_cap_and_is_spread() -> None:
    settings = TransferSettings(first_backoff_seconds=1.0, max_backoff_seconds=8.0)
    assert [backoff_seconds(settings, attempt, 1.0) for attempt in (1, 2, 3, 4, 5, 500)] == [1, 2, 4, 8, 8, 8]
    assert backoff_seconds(settings, 3, 0.0) == 2.0


def test_retry_after_in_both_forms() -> None:
    assert retry_after_seconds("17") == 17
    in_a_minute = retry_after_seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds(None, '"api";r=0;t=189') == 189
    assert retry_after_seconds(None) is None
