"""The lines for people: every call names a sentence and gives what it needs, and no sentence is without a call."""

import ast
from importlib import resources
from pathlib import Path

from kargah.compute.sink import Log
from kargah.spec.control import Exit, Outcome
from kargah.spec.journal import FAILED_LINE, JournalWriter, read_journal
from kargah.text.messages import catalog, placeholders

from .tiny import ListSink

PREFIX = "log."
BY_VARIABLE = {"pauseWished", "stopWished", "trainTokenised", "validationTokenised"}
"""Keys that a call gets in a variable; the runs of the tests beside write them."""

ANY = "**"
"""Stands for details that a call gets in a variable."""


def _calls() -> list[tuple[str, set[str]]]:
    """Key and names of the details of every call with a literal key."""
    found = []
    files = [file for room in ("compute", "runs") for file in Path(str(resources.files("kargah") / room)).rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            # The server's lines (`tell`) have session, run, attempt and level before the key.
            at = {"info": 0, "warning": 0, "tell": 4}.get(node.func.attr)
            key = node.args[at] if at is not None and len(node.args) > at else None
            if isinstance(key, ast.Constant) and str(key.value).isidentifier():
                found.append((str(key.value), {keyword.arg or ANY for keyword in node.keywords}))
    return found


def test_every_call_has_its_sentence_and_every_sentence_its_call() -> None:
    calls = _calls()
    sentences = {key.removeprefix(PREFIX) for key in catalog("en") if key.startswith(PREFIX)}
    assert {key for key, _ in calls} | BY_VARIABLE == sentences
    for key, details in calls:
        assert ANY in details or placeholders(catalog("en")[PREFIX + key]) <= details, key


def test_a_line_has_its_key_its_english_words_and_what_fills_them() -> None:
    sink = ListSink()
    Log(sink).warning("maxLengthCut", asked=600, maxLength=512)
    assert sink.records == [
        {
            "type": "log",
            "level": "warning",
            "message": "maxLength 600 is more than the model's 512 positions",
            "key": "maxLengthCut",
            "details": {"asked": 600, "maxLength": 512},
        }
    ]


def test_a_failure_names_its_error_and_keeps_its_detail(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path / "journal.jsonl")
    Log(journal).failed(Exit(Outcome.FAILED, 7, "UNKNOWN_LABEL", {"label": "خنثی"}, "only validation rows have it"))
    journal.close()
    (record,) = read_journal(tmp_path / "journal.jsonl").records
    assert (record["level"], record["key"], record["message"]) == ("error", FAILED_LINE, "only validation rows have it")
    assert record["details"] == {
        "step": 7, "label": "خنثی", "error": "UNKNOWN_LABEL", "detail": "only validation rows have it",
    }  # fmt: skip
