"""Real runs of the tiny model through the shared server, made once a session, one after the other."""

from pathlib import Path

import pytest
from living import BERT, Living
from prepared import Finished, Prepared


@pytest.fixture(scope="session")
def prepared(live: Living, tiny: Path) -> Prepared:
    live.fetch(BERT)
    return Prepared(live, live.upload(tiny / "opinions", "نظرهای کوتاه 🌱"))


@pytest.fixture(scope="session")
def finished(prepared: Prepared) -> Finished:
    run_id = prepared.start(name="اجرای نخست")
    told = prepared.live.events(prepared.stream(run_id))
    return Finished(run_id, told)
