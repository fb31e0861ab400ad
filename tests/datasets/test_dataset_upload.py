"""Uploads over real HTTP: what is accepted, what is refused before and behind the answer, what is left on disk."""

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kargah.assets.models import AssetRow
from kargah.datasets import errors as room_errors
from kargah.datasets.receiving import read_upload
from kargah.ground.errors import KargahError
from kargah.text.messages import catalog, placeholders

GOOD = ("a.csv", "text,label\nسلام,خوب\nبدرود,بد\n".encode())


def all_rows(server: Any, dataset_id: str, **params: Any) -> list[dict[str, Any]]:
    splits = [split["name"] for split in server.get(f"/api/datasets/{dataset_id}")["splits"]]
    path = f"/api/datasets/{dataset_id}/rows"
    return [row for split in splits for row in server.get(path, split=split, limit=1000, **params)["rows"]]


def test_an_upload_becomes_a_data_set(server: Any) -> None:
    answer = server.upload({"file": ("نظرها ۱.csv", GOOD[1])}, name="نظرِ مشتری\u200cها 🍰")
    assert answer.status_code == 202
    body = answer.json()
    assert body["ok"] is True
    assert body["data"]["status"] == "downloading"
    dataset_id = body["data"]["datasetId"]
    assert len(dataset_id) == 32
    events = server.events_of(dataset_id)
    assert all(event["datasetId"] == dataset_id for event in events)
    assert events[-1]["status"] == "done"
    assert events[-1]["progress"] == 100
    assert events[-1]["totalBytes"] == events[-1]["bytesDownloaded"] == len(GOOD[1])
    assert {event["phase"] for event in events} <= {"queued", "converting", "done"}

    listed = server.get("/api/datasets")
    assert [asset["id"] for asset in listed] == [dataset_id]
    data = server.get(f"/api/datasets/{dataset_id}")
    assert data["name"] == "نظرِ مشتری\u200cها 🍰"
    assert (data["kind"], data["source"], data["status"]) == ("dataset", "local", "ready")
    assert data["tasks"] == ["text-classification"]
    assert data["mapping"] == {"text": "text", "label": "label"}
    assert data["splits"] == [{"name": "train", "numRows": 2}]
    assert data["labels"] == ["بد", "خوب"]
    assert data["revision"] == data["version"]
    assert data["files"][0]["name"] == "نظرها ۱.csv"
    assert data["columns"][0] == {
        "name": "text",
        "type": "string",
        "examples": ["سلام", "بدرود"],
        "numNulls": 0,
        "numUnique": 2,
        "numUniqueOver": None,
    }
    assert data["findings"] == []
    assert not server.uploads_left()
    assert server.client.delete(f"/api/assets/{dataset_id}").json()["data"]["freedBytes"] > 0
    assert server.client.get(f"/api/datasets/{dataset_id}").status_code == 404


def test_several_files_and_columns(server: Any) -> None:
    dataset_id = server.import_now(
        [
            ("file:train", ("t1.csv", b"p,h,gold\na,b,x\n")),
            ("file:train", ("t2.jsonl", b'{"p": "c", "h": "d", "gold": "y"}')),
            ("file:validation", ("v.csv", b"p;h;gold\ne;f;x\n")),
            ("file:test", ("../../x.tsv", b"p\th\tgold\ng\th\ty\n")),
        ],
        columns='{"text": "p", "textPair": "h", "label": "gold"}',
        task="text-classification",
    )
    data = server.get(f"/api/datasets/{dataset_id}")
    assert data["mapping"] == {"text": "p", "textPair": "h", "label": "gold"}
    assert [split["numRows"] for split in data["splits"]] == [2, 1, 1]
    assert data["files"][3]["name"] == "x.tsv"


def test_findings_have_sentences(server: Any) -> None:
    dataset_id = server.import_now({"file": ("a.csv", b"text,label\na,x\n,y\nb,\n")})
    findings = server.get(f"/api/datasets/{dataset_id}")["findings"]
    assert [(finding["code"], finding["count"]) for finding in findings] == [("EMPTY_TEXT", 1), ("EMPTY_LABEL", 1)]
    assert findings[0]["message"] == "Rows without a text: 1. Training leaves them out."
    assert findings[0]["severity"] == "warning"


def test_rows(server: Any) -> None:
    content = "text,label\n" + "".join(f"می\u200cروم {n},{n % 2}\n" for n in range(100)) + "كيك,1\n"
    dataset_id = server.import_now({"file:train": ("a.csv", content.encode()), "file:validation": GOOD})
    path = f"/api/datasets/{dataset_id}/rows"
    data = server.get(path, offset=98, limit=2)
    assert data["rows"] == [{"text": f"می\u200cروم {n}", "label": str(n % 2)} for n in (98, 99)]
    assert (data["total"], data["split"]) == (101, "train")
    assert server.get(path, q="کیک")["rows"] == [{"text": "كيك", "label": "1"}]
    assert server.get(path, q="میروم ۹")["total"] == 11
    assert server.get(path, split="validation")["total"] == 2
    for params in ({"split": "test"}, {"limit": 1001}, {"limit": 0}, {"offset": -1}):
        answer = server.client.get(path, params=params)
        assert (answer.status_code, answer.json()["error"]) == (400, "VALIDATION_FAILED")


def test_list_is_searched_folded(server: Any) -> None:
    first = server.import_now({"file": GOOD}, name="كتاب\u200cها")
    server.import_now({"file": GOOD}, name="other")
    assert [asset["id"] for asset in server.get("/api/datasets", q="کتابها")] == [first]
    assert len(server.get("/api/datasets")) == 2


@pytest.mark.parametrize(
    ("files", "fields", "field"),
    [
        ({}, {}, "file"),
        ({"file": GOOD}, {"name": ""}, "name"),
        ({"file": GOOD}, {"name": " "}, "name"),
        ({"file": GOOD}, {"name": "x" * 201}, "name"),
        ({"file": GOOD}, {"task": "translation"}, "task"),
        ({"file": GOOD}, {"colour": "red"}, "colour"),
        ({"file:dev": GOOD}, {}, "file:dev"),
        ({"file": GOOD}, {"columns": "{"}, "columns"),
        ({"file": GOOD}, {"columns": "[]"}, "columns"),
        ({"file": GOOD}, {"columns": '"text"'}, "columns"),
        ({"file": GOOD}, {"columns": '{"text": 1}'}, "columns.text"),
        ({"file": GOOD}, {"columns": '{"text": ""}'}, "columns.text"),
        ({"file": GOOD}, {"columns": '{"body": "text"}'}, "columns.body"),
        ({"file": GOOD}, {"columns": '{"text": "a", "label": "a"}'}, "columns.label"),
        ({"file": GOOD}, {"columns": '{"text": "a", "text": "b"}'}, "columns.text"),
        ({"file": GOOD}, {"columns": '{"textPair": "a"}'}, "columns.text"),
        ([("file", GOOD)] * 65, {}, "file"),
    ],
)
def test_refused_before_the_answer(server: Any, files: Any, fields: dict[str, str], field: str) -> None:
    files = files or {"nothing": ("", b"")}
    answer = server.upload(files, **fields)
    body = answer.json()
    assert (answer.status_code, body["error"]) == (400, "VALIDATION_FAILED")
    assert field in [problem["field"] for problem in body["details"]] or field == "file"
    assert not server.uploads_left()
    assert server.get("/api/datasets") == []


def test_refused_forms(server: Any) -> None:
    def post(body: bytes, kind: str = "multipart/form-data; boundary=x") -> tuple[int, str]:
        answer = server.client.post("/api/datasets/upload", content=body, headers={"Content-Type": kind})
        return answer.status_code, answer.json()["error"]

    name = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nn\r\n'
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na,b\r\n'
    for body in (
        b"",
        name + file,
        name + file + b"--",
        b"junk",
        name + name + file + b"--x--\r\n",
        name + b"--x--\r\n",
    ):
        assert post(body) == (400, "VALIDATION_FAILED")
    assert post(name, "multipart/form-data") == (400, "VALIDATION_FAILED")
    assert post(b"{}", "application/json") == (400, "VALIDATION_FAILED")
    bad_name = name.replace(b"\r\nn\r\n", b"\r\n\xff\r\n")
    assert post(bad_name + file + b"--x--\r\n") == (400, "VALIDATION_FAILED")
    answer = server.upload({"file": ("a.csv", b"")})
    assert (answer.status_code, answer.json()["error"]) == (400, "EMPTY_DATA")
    answer = server.upload({"file:test": GOOD})
    assert (answer.status_code, answer.json()["error"]) == (400, "TRAIN_SPLIT_MISSING")
    assert not server.uploads_left()


def test_too_large(server: Any) -> None:
    big = b"text,label\n" + b"x" * 8_000_000

    def chunks() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield from (big[at : at + 100_000] for at in range(0, len(big), 100_000))

    answers = [
        server.upload({"file": ("a.csv", big)}),
        server.client.post(
            "/api/datasets/upload", content=chunks(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        ),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]) == (413, "TOO_LARGE")
    assert not server.uploads_left()


def test_refused_behind_the_answer(server: Any) -> None:
    last = server.fail_now({"file": ("a.csv", b"text,label\na,b\nc\n")})
    assert last["error"] == "BAD_ROW"
    assert last["message"].startswith("Row 2 of a.csv (line 3) has 1 columns, but the header has 2.")
    last = server.fail_now({"file": ("a.csv", b"text,label\na,b\n\xff,d\n")})
    assert last["error"] == "BAD_ENCODING"
    assert "byte 15" in last["message"]
    assert "UTF-8" in last["message"]
    last = server.fail_now({"file": GOOD}, columns='{"label": "برچسب"}')
    assert last["error"] == "COLUMN_NOT_FOUND"
    assert last["details"] == {"column": "برچسب", "file": "a.csv", "available": ["text", "label"]}
    for dataset_id in (asset["id"] for asset in server.get("/api/datasets")):
        answer = server.client.get(f"/api/datasets/{dataset_id}")
        assert (answer.status_code, answer.json()["error"]) == (409, "ASSET_NOT_READY")
        assert server.client.get(f"/api/datasets/{dataset_id}/rows").status_code == 409
        assert server.client.delete(f"/api/assets/{dataset_id}").status_code == 200
    assert not server.uploads_left()
    assert not [path for path in server.home.datasets.rglob("*") if path.is_file()]


def test_unknown_and_damaged(server: Any) -> None:
    for place in ("/api/datasets/nothing", "/api/datasets/org/name", "/api/datasets/org%2Fname/rows"):
        answer = server.client.get(place)
        assert (answer.status_code, answer.json()["error"]) == (404, "ASSET_NOT_FOUND")
    assert server.client.get("/api/datasets/a/b/c").status_code == 400
    dataset_id = server.import_now({"file": GOOD})
    with server.database.read() as session:
        row = session.get(AssetRow, ("dataset", dataset_id))
    (server.home.root / row.path / "train.parquet").unlink()
    for place in (f"/api/datasets/{dataset_id}", f"/api/datasets/{dataset_id}/rows"):
        answer = server.client.get(place)
        assert (answer.status_code, answer.json()["error"]) == (409, "DATASET_DAMAGED")


def test_odd_columns_come_back(server: Any) -> None:
    content = b'__proto__,,constructor,"a\nb",text,label\n1,2,3,4,5,6\n'
    dataset_id = server.import_now({"file": ("a.csv", content)})
    assert all_rows(server, dataset_id) == [
        {"__proto__": "1", "column2": "2", "constructor": "3", "a\nb": "4", "text": "5", "label": "6"}
    ]
    assert server.fail_now({"file": ("a.csv", b"text,label,text\n1,2,3\n")})["error"] == "DUPLICATE_COLUMN"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(), min_size=1, max_size=30), label=st.text(min_size=1))
def test_any_text_comes_back_as_it_was(server: Any, texts: list[str], label: str) -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows([["text", "label", "n"], *([text, label, n] for n, text in enumerate(texts))])
    dataset_id = server.import_now({"file": ("a.csv", written.getvalue().encode())})
    found = sorted(all_rows(server, dataset_id), key=lambda row: int(row["n"]))
    assert found == [{"text": text, "label": label, "n": str(n)} for n, text in enumerate(texts)]


def test_a_restart_takes_the_upload_up_again(new_server: Any) -> None:
    first = new_server()
    with first.client:
        waiting = first.upload({"file": GOOD}).json()["data"]  # nobody imports: the thread was never started
        lost = first.upload({"file": GOOD}).json()["data"]
    (first.home.uploads / lost["downloadId"] / "0").unlink()
    (first.home.uploads / ".half.receiving").mkdir()
    (first.home.uploads / "0123").mkdir()
    assert read_upload(first.home.uploads / lost["downloadId"]) is None
    first.close()

    second = new_server()
    second.importer.start()
    with second.client:
        last = second.events_of(waiting["datasetId"])[-1]
        assert (last["status"], last["downloadId"]) == ("done", waiting["downloadId"])
        assert len(all_rows(second, waiting["datasetId"])) == 2
        last = second.events_of(lost["datasetId"])[-1]
        assert (last["status"], last["error"]) == ("error", "UPLOAD_INTERRUPTED")
    assert not second.uploads_left()


def test_a_stop_leaves_the_import_for_the_next_start(new_server: Any) -> None:
    first = new_server()
    with first.client:
        upload = first.upload({"file": GOOD}).json()["data"]
        stopping = threading.Thread(target=first.importer.stop)
        with first.database.write():  # the import gets as far as its first write, and no further
            first.importer.start()
            stopping.start()
            while not first.importer.stopping:
                pass
        stopping.join()
        assert first.client.get(f"/api/datasets/{upload['datasetId']}").json()["error"] == "ASSET_NOT_READY"
    first.database.close()
    assert not list(first.home.datasets.rglob("*.parquet"))

    second = new_server()
    second.importer.start()
    with second.client:
        last = second.events_of(upload["datasetId"])[-1]
        assert (last["status"], last["downloadId"]) == ("done", upload["downloadId"])


def test_cancel(new_server: Any) -> None:
    server = new_server()
    with server.client:
        upload = server.upload({"file": GOOD}).json()["data"]
        server.importer.cancel(upload["downloadId"])
        server.importer.start()
        last = server.events_of(upload["datasetId"])[-1]
        assert (last["status"], last["error"]) == ("error", "CANCELLED")
        assert not server.uploads_left()


def test_the_document_names_form_and_errors(server: Any) -> None:
    paths = server.app.openapi()["paths"]
    upload = paths["/api/datasets/upload"]["post"]
    assert "multipart/form-data" in upload["requestBody"]["content"]
    assert {"202", "400", "413", "507"} <= set(upload["responses"])
    assert {"200", "400", "404", "409"} <= set(paths["/api/datasets/{dataset_id}/rows"]["get"]["responses"])
    assert "/api/datasets/{dataset_id}" in paths


def test_every_sentence_is_in_both_languages() -> None:
    folder = Path(room_errors.__file__).parents[1] / "text" / "messages"
    fa, en = (json.loads((folder / language / "datasets.json").read_text("utf-8")) for language in ("fa", "en"))
    assert fa.keys() == en.keys()
    for key, sentence in fa.items():
        assert placeholders(sentence) == placeholders(en[key]), key
    for cls in vars(room_errors).values():
        if isinstance(cls, type) and issubclass(cls, KargahError) and cls.__module__ == room_errors.__name__:
            assert f"error.{cls.code}" in catalog("fa")
