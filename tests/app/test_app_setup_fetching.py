"""The bytes of the wheels that `kargah setup compute` brings, over connections that misbehave in every way."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from package_index import Moods, PackageIndex, killed_at_the_gate, serving, tiny_packages
from packaging.utils import canonicalize_name

from kargah.app.setup.environment import Environment
from kargah.app.setup.errors import IndexRefused, IndexUnreachable, NotAWheel, SetupFailed, WheelMismatch
from kargah.app.setup.fetching import Arriving, Fetcher
from kargah.app.setup.network import Network, network_of
from kargah.app.setup.pip_program import RESOLVING_PIP, IndexOptions, Pip
from kargah.app.setup.resolving import Wheel
from kargah.hub.job import TransferSettings

NETWORK = Network({}, None, None, frozenset())
HASTY = TransferSettings(first_backoff_seconds=0.001, max_backoff_seconds=0.01, idle_retries=3, idle_timeout_seconds=5)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with serving(tiny_packages()) as one:
        yield one


def _wheel(index: PackageIndex, file: str, **changed: Any) -> Wheel:
    content = index.wheels[file]
    name, version = file.split("-")[:2]
    url = index.url.replace("/simple", f"/files/{file}")
    found = Wheel(canonicalize_name(name), version, file, url, hashlib.sha256(content).hexdigest(), len(content))
    return replace(found, **changed)


def _fetch(folder: Path, wheels: Sequence[Wheel], network: Network = NETWORK) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    fetcher = Fetcher(folder, network, HASTY)
    try:
        return fetcher.fetch(wheels, lambda arriving: None)
    finally:
        fetcher.close()


def test_a_connection_that_breaks_again_and_again_is_taken_up_each_time(index: PackageIndex, tmp_path: Path) -> None:
    index.moods = Moods(drop_every_bytes=40_000)
    wheels = [_wheel(index, file) for file in index.wheels]
    digests = _fetch(tmp_path, wheels)
    for wheel in wheels:
        assert (tmp_path / wheel.file).read_bytes() == index.wheels[wheel.file]
    assert digests == {wheel.file: wheel.sha256 for wheel in wheels}
    assert index.total_sent_bytes == sum(map(len, index.wheels.values()))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(index.wheels)


def test_killed_in_the_middle_only_what_is_missing_comes_again(index: PackageIndex, tmp_path: Path) -> None:
    wheels = [_wheel(index, file) for file in index.wheels]
    command = [sys.executable, "-c", _FETCH, str(tmp_path), json.dumps([asdict(wheel) for wheel in wheels])]
    killed_at_the_gate(index, command, tmp_path)
    index.moods = Moods()
    _fetch(tmp_path, wheels)
    assert all((tmp_path / file).read_bytes() == content for file, content in index.wheels.items())
    assert index.total_sent_bytes == sum(map(len, index.wheels.values())), "no byte came twice"


_FETCH = """
import json, sys
from pathlib import Path
from kargah.app.setup.fetching import Fetcher
from kargah.app.setup.network import Network
from kargah.app.setup.resolving import Wheel
wheels = [Wheel(**wheel) for wheel in json.loads(sys.argv[2])]
Fetcher(Path(sys.argv[1]), Network({}, None, None, frozenset())).fetch(wheels, lambda arriving: None)
"""


def test_a_server_without_ranges_serves_when_it_holds_out(index: PackageIndex, tmp_path: Path) -> None:
    wheel = _wheel(index, "tiny_torch-1.1-py3-none-any.whl")
    index.moods = Moods(ranges=False)
    (tmp_path / f"{wheel.file}.{str(wheel.sha256)[:16]}.part").write_bytes(index.wheels[wheel.file][:100_000])
    _fetch(tmp_path, [wheel])
    assert (tmp_path / wheel.file).read_bytes() == index.wheels[wheel.file]
    assert index.asked[-1][2] == "bytes=100000-"


def test_a_server_without_ranges_that_always_breaks_is_given_up_and_said(index: PackageIndex, tmp_path: Path) -> None:
    index.moods = Moods(ranges=False, drop_every_bytes=40_000)
    with pytest.raises(IndexUnreachable) as caught:
        _fetch(tmp_path, [_wheel(index, "tiny_torch-1.1-py3-none-any.whl")])
    assert caught.value.params["host"] == "127.0.0.1"
    assert len(index.asked) == 1 + HASTY.idle_retries + 1


def test_what_is_not_as_announced_is_refused_and_not_kept(index: PackageIndex, tmp_path: Path) -> None:
    wheel = _wheel(index, "tiny_maths-1.0-py3-none-any.whl", sha256="0" * 64)
    with pytest.raises(WheelMismatch):
        _fetch(tmp_path, [wheel])
    assert list(tmp_path.iterdir()) == []
    assert len(index.asked) == 1, "it came in one go, so asking again would bring the same"


def test_a_damaged_part_of_an_earlier_run_is_replaced(index: PackageIndex, tmp_path: Path) -> None:
    wheel = _wheel(index, "tiny_maths-1.0-py3-none-any.whl")
    (tmp_path / f"{wheel.file}.{str(wheel.sha256)[:16]}.part").write_bytes(b"x" * 1000)
    _fetch(tmp_path, [wheel])
    assert (tmp_path / wheel.file).read_bytes() == index.wheels[wheel.file]


def test_a_damaged_wheel_is_fetched_anew_and_a_good_one_is_not(index: PackageIndex, tmp_path: Path) -> None:
    good, bad = (_wheel(index, file) for file in ("tiny_words-1.0-py3-none-any.whl", "tiny_maths-1.0-py3-none-any.whl"))
    (tmp_path / good.file).write_bytes(index.wheels[good.file])
    (tmp_path / bad.file).write_bytes(index.wheels[bad.file][:-1] + b"x")
    _fetch(tmp_path, [good, bad])
    assert (tmp_path / bad.file).read_bytes() == index.wheels[bad.file]
    assert [file for _, file, _ in index.asked] == [bad.file]


def test_an_index_that_asks_to_wait_is_waited_for(index: PackageIndex, tmp_path: Path) -> None:
    index.moods = Moods(refusals=[(429, {"Retry-After": "0"})] * 5 + [(503, {}), (502, {})])
    _fetch(tmp_path, [_wheel(index, "tiny_words-1.0-py3-none-any.whl")])
    assert len(index.asked) == 8


@pytest.mark.parametrize(("moods", "error"), [(Moods(login_page=True), NotAWheel), (Moods(password="x"), IndexRefused)])
def test_what_does_not_pass_by_itself_is_said_at_once(
    index: PackageIndex, tmp_path: Path, moods: Moods, error: type[SetupFailed]
) -> None:
    index.moods = moods
    with pytest.raises(error):
        _fetch(tmp_path, [_wheel(index, "tiny_words-1.0-py3-none-any.whl")])
    assert len(index.asked) <= 1


def test_without_a_digest_the_tag_decides_whether_a_part_goes_on(index: PackageIndex, tmp_path: Path) -> None:
    wheel = _wheel(index, "tiny_maths-1.0-py3-none-any.whl", sha256=None)
    index.moods = Moods(drop_every_bytes=20_000)
    _fetch(tmp_path, [wheel])
    assert (tmp_path / wheel.file).read_bytes() == index.wheels[wheel.file]
    assert index.total_sent_bytes == len(index.wheels[wheel.file])
    (tmp_path / wheel.file).unlink()
    (tmp_path / f"{wheel.file}.part").write_bytes(b"of another file")
    (tmp_path / f"{wheel.file}.part.etag").write_text('"of another file"')
    index.moods = Moods()
    _fetch(tmp_path, [wheel])
    assert (tmp_path / wheel.file).read_bytes() == index.wheels[wheel.file]
    assert sorted(path.name for path in tmp_path.iterdir()) == [wheel.file]


def test_a_wheel_on_this_machine_is_copied_and_verified(index: PackageIndex, tmp_path: Path) -> None:
    file = "tiny_words-1.0-py3-none-any.whl"
    source = tmp_path / "mirror" / file
    source.parent.mkdir()
    source.write_bytes(index.wheels[file])
    _fetch(tmp_path / "wheels", [_wheel(index, file, url=source.as_uri(), sha256=None)])
    assert (tmp_path / "wheels" / file).read_bytes() == index.wheels[file]
    with pytest.raises(WheelMismatch):
        _fetch(tmp_path / "others", [_wheel(index, file, url=source.as_uri(), sha256="0" * 64)])


def test_sizes_are_asked_and_how_far_it_is_can_be_watched(index: PackageIndex, tmp_path: Path) -> None:
    wheels = [_wheel(index, file, size_bytes=None) for file in index.wheels]
    fetcher = Fetcher(tmp_path, NETWORK, HASTY)
    assert fetcher.sizes(wheels) == {file: len(content) for file, content in index.wheels.items()}
    seen: list[int] = []

    def watch(arriving: Sequence[Arriving]) -> None:
        seen.append(sum(one.length for one in arriving))

    fetcher.fetch(wheels, watch)
    assert seen == sorted(seen)
    assert seen[-1] == sum(map(len, index.wheels.values()))


def test_credentials_of_the_options_of_pip_and_of_netrc(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.moods = Moods(password="s3:cret")
    secret = index.url.replace("//", "//user:s3%3Acret@")
    pip = Pip(Environment(sys.executable), RESOLVING_PIP)
    wheel = _wheel(index, "tiny_words-1.0-py3-none-any.whl")
    by_option = network_of(pip, IndexOptions(secret))
    by_configuration = network_of(replace(pip, configuration={"extra-index-url": f"\n{secret}\n"}), IndexOptions())
    for number, network in enumerate((by_option, by_configuration)):
        _fetch(tmp_path / str(number), [wheel], network)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password s3:cret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    _fetch(tmp_path / "netrc-folder", [wheel])
