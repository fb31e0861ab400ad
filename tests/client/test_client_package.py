"""The client as others meet it: imported from `kargah` when it is asked for, standing apart, and as its page shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from living import Living
from small_runs import COLUMNS

import kargah
from kargah.client import Client, Dataset

PAGE = Path(__file__).parents[2] / "docs" / "client.md"


def _modules(program: str) -> set[str]:
    """What is loaded after a program."""
    tail = "; import sys; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program + tail], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_alone_loads_nothing() -> None:
    assert _modules("import kargah") & {"httpx", "pydantic", "kargah.client"} == set()


def test_the_client_comes_when_it_is_asked_for() -> None:
    loaded = _modules("from kargah import ApiError, Client")
    assert {"httpx", "pydantic", "kargah.client"} <= loaded
    rooms = {name.split(".")[1] for name in loaded if name.startswith("kargah.")}
    assert rooms == {"client", "text"}
    assert loaded & {"fastapi", "starlette", "sqlalchemy", "torch", "pyarrow"} == set()


def test_names_of_the_package() -> None:
    assert kargah.Client is Client
    assert kargah.ApiError.__module__ == "kargah.client.errors"
    assert set(kargah.__all__) == {"ApiError", "Client", "__version__"}
    with pytest.raises(AttributeError, match="nothing_such"):
        kargah.nothing_such  # noqa: B018


def test_only_the_command_line_stands_on_the_client() -> None:
    """The server speaks to nobody through it."""
    room = Path(kargah.__file__).parent
    importers = {
        file.relative_to(room).parts[0]
        for file in room.rglob("*.py")
        if re.search(r"^\s*(from|import) kargah\.client", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importers <= {"__init__.py", "app", "client"}


def test_every_example_of_the_page_runs(live: Living, opinions: Dataset, tmp_path: Path) -> None:
    assert opinions.mapping == COLUMNS
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 8
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**live.environment, "KARGAH_LANG": "en"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "نخستین اجرا.parquet").stat().st_size > 0
    assert "400 MODEL_NOT_ALLOWED" in done.stdout
    assert "completed" in done.stdout
