"""Importing: what lands on disk, in which split, under which version; and the built-in set."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kargah.datasets import tally
from kargah.datasets.builtin import SUPPORT_ID, load_builtin
from kargah.datasets.errors import ColumnNotFound, EmptyData, TooManyLabels, TrainSplitMissing
from kargah.datasets.importing import import_files, sweep
from kargah.datasets.stored import FolderUnreadable, describe, read_part
from kargah.datasets.writing import GROUP_ROWS
from kargah.ground.home import Home
from kargah.spec.manifest import verify_folder


def csv_of(rows: list[tuple[str, ...]], header: str = "text,label") -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def stored(folder: Path, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / f"{split}.parquet").to_pylist()
    return rows


def test_train_and_validation_are_made(home: Home, source: Any) -> None:
    rows = [(f"متن {n}", f"برچسب{n % 3}") for n in range(300)]
    progress: list[tuple[int, int]] = []
    imported = import_files(
        home, "org/name", [source("a.csv", csv_of(rows))], on_progress=lambda *done: progress.append(done)
    )
    info = imported.info
    assert imported.path == f"datasets/org--name/{imported.version}"
    assert info.folder == home.root / imported.path
    assert info == describe(info.folder)
    assert info.splits == {"train": 270, "validation": 30}
    assert (info.mapping, info.task) == ({"text": "text", "label": "label"}, "text-classification")
    assert info.labels == ["برچسب0", "برچسب1", "برچسب2"]
    both = {split: stored(info.folder, split) for split in ("train", "validation")}
    for label in info.labels:
        assert sum(row["label"] == label for row in both["validation"]) == 10
    order = {text: place for place, (text, _) in enumerate(rows)}
    for part in both.values():
        places = [order[row["text"]] for row in part]
        assert places == sorted(places)
    assert sorted(row["text"] for part in both.values() for row in part) == sorted(order)
    verify_folder(info.folder)
    assert sorted(path.name for path in info.folder.parent.iterdir()) == [imported.version]
    assert progress == sorted(progress)
    assert progress[-1][0] == progress[-1][1] == info.sources[0]["sizeBytes"]
    assert imported.facts == {
        "version": imported.version,
        "task": "text-classification",
        "tasks": ["text-classification"],
        "numRows": {"train": 270, "validation": 30},
    }


def test_the_version_is_the_content(home: Home, source: Any) -> None:
    rows = [(f"t{n}", f"l{n % 2}") for n in range(40)]
    as_csv = import_files(home, "a", [source("a.csv", csv_of(rows))])
    as_tsv = import_files(home, "b", [source("b.tsv", csv_of(rows).replace(",", "\t"))])
    as_json = import_files(
        home, "c", [source("c.jsonl", "\n".join(json.dumps({"text": t, "label": x}) for t, x in rows))]
    )
    halves = [source("d.csv", csv_of(rows[:7])), source("e.csv", csv_of(rows[7:]))]
    assert {as_tsv.version, as_json.version, import_files(home, "d", halves).version} == {as_csv.version}
    others = [
        csv_of([*rows[:-1], ("t39", "l0")]),
        csv_of(list(reversed(rows))),
        csv_of(rows, "text,labels"),
        csv_of(rows[:-1]),
    ]
    versions = {import_files(home, "e", [source("e.csv", other)]).version for other in others}
    assert len(versions | {as_csv.version}) == 5


def test_importing_again_changes_the_description_alone(home: Home, source: Any) -> None:
    file = source("a.csv", "text,label,other\na,x,1\nb,y,2\n")
    first = import_files(home, "a", [file])
    before = (first.info.folder / "train.parquet").stat().st_mtime_ns
    second = import_files(home, "a", [file], {"text": "other", "label": "label"})
    assert second.version == first.version
    assert (first.info.folder / "train.parquet").stat().st_mtime_ns == before
    assert describe(first.info.folder).mapping["text"] == "other"
    (first.info.folder / "train.parquet").write_bytes(b"damage")
    import_files(home, "a", [file])
    verify_folder(first.info.folder)


def test_given_splits_stay_as_they_are(home: Home, source: Any) -> None:
    files = [
        source("test.csv", "premise,hypothesis,label,hard\nc,d,z,1\n", "test"),
        source("train.csv", "premise,hypothesis,label\na,b,x\na,b,y\n", "train"),
        source("val.csv", "premise,hypothesis,label\na,b,v\n", "validation"),
        source("more.csv", "premise,hypothesis,label\ne,f,x\n", None),
    ]
    info = import_files(home, "a", files).info
    assert info.splits == {"train": 3, "validation": 1, "test": 1}
    assert list(info.splits) == ["train", "validation", "test"]
    assert info.mapping == {"text": "premise", "textPair": "hypothesis", "label": "label"}
    assert info.labels == ["v", "x", "y"]
    assert [column.name for column in info.columns] == ["premise", "hypothesis", "label", "hard"]
    assert stored(info.folder, "train")[0] == {"premise": "a", "hypothesis": "b", "label": "x", "hard": None}
    assert stored(info.folder, "test") == [{"premise": "c", "hypothesis": "d", "label": "z", "hard": "1"}]
    assert [file["name"] for file in info.sources] == ["train.csv", "more.csv", "val.csv", "test.csv"]


def test_few_rows_give_no_validation(home: Home, source: Any) -> None:
    info = import_files(home, "a", [source("a.csv", "text,label\na,x\nb,y\nc,x\nd,y\n")]).info
    assert info.splits == {"train": 4}
    assert not (info.folder / "validation.parquet").exists()


def test_unusable_rows_are_kept_told_and_stay_in_training(home: Home, source: Any) -> None:
    rows = [*((f"t{n}", "x") for n in range(20)), ("  ", "x"), ("", "lonely"), ("t", " "), ("u", ""), ("", "")]
    info = import_files(home, "a", [source("a.csv", csv_of(rows))]).info
    assert info.splits == {"train": 23, "validation": 2}
    assert info.labels == ["x"]
    assert info.findings == [
        {"code": "EMPTY_TEXT", "count": 3, "examples": [{"file": "a.csv", "row": row} for row in (21, 22, 25)]},
        {"code": "EMPTY_LABEL", "count": 3, "examples": [{"file": "a.csv", "row": row} for row in (23, 24, 25)]},
    ]
    assert {"text": "  ", "label": "x"} in stored(info.folder, "train")


def test_types_and_statistics(home: Home, source: Any) -> None:
    lines = [
        {"text": "الف" * 100, "label": 1, "score": 1, "ok": True, "mixed": 1, "__proto__": "p"},
        {"text": "ب", "label": 2, "score": 0.5, "mixed": "یک", "extra": {"k": [1]}},
        {"text": "ب", "label": 1, "score": None, "ok": False, "mixed": None},
    ]
    info = import_files(home, "a", [source("a.jsonl", "\n".join(map(json.dumps, lines)))]).info
    columns = {column.name: column for column in info.columns}
    assert {name: column.type for name, column in columns.items()} == {
        "text": "string",
        "label": "int",
        "score": "float",
        "ok": "bool",
        "mixed": "string",
        "__proto__": "string",
        "extra": "string",
    }
    assert columns["text"].examples == ["الف" * 66 + "ال", "ب"]
    assert (columns["text"].num_nulls, columns["text"].num_unique) == (0, 2)
    assert (columns["mixed"].num_nulls, columns["mixed"].examples) == (1, ["1", "یک"])
    assert (columns["extra"].num_nulls, columns["extra"].examples) == (2, ['{"k": [1]}'])
    assert info.labels == ["1", "2"]
    assert stored(info.folder, "train")[0]["score"] == 1.0


def test_csv_and_parquet_and_json_together(home: Home, source: Any, tmp_path: Path) -> None:
    files = [source("a.csv", "text,label\na,01\n"), source("b.jsonl", '{"text": "b", "label": 2}')]
    info = import_files(home, "a", files).info
    assert [row["label"] for row in stored(info.folder, "train")] == ["01", "2"]
    again = import_files(home, "b", [source("c.parquet", (info.folder / "train.parquet").read_bytes())])
    assert again.version == info.version


def test_without_a_label(home: Home, source: Any) -> None:
    file = source("a.csv", csv_of([(f"t{n}", f"{n}") for n in range(50)], "text,id"))
    info = import_files(home, "a", [file]).info
    assert (info.mapping, info.task, info.labels) == ({"text": "text"}, None, [])
    assert info.splits == {"train": 45, "validation": 5}
    with pytest.raises(ColumnNotFound):
        import_files(home, "a", [file], task="text-classification")


def test_refusals_leave_nothing(home: Home, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = source("a.csv", csv_of([(f"t{n}", f"l{n}") for n in range(20)]))
    with pytest.raises(ColumnNotFound) as raised:
        import_files(home, "a", [file], {"text": "متن"})
    assert raised.value.details == {"column": "متن", "file": "a.csv", "available": ["text", "label"]}
    with pytest.raises(ColumnNotFound) as raised:
        import_files(home, "a", [file, source("b.csv", "text,klass\na,b\n", "test")])
    assert raised.value.params["file"] == "b.csv"
    with pytest.raises(TrainSplitMissing):
        import_files(home, "a", [source("a.csv", "text,label\na,b\n", "test")])
    with pytest.raises(EmptyData):
        import_files(home, "a", [file, source("v.csv", "text,label\n", "validation")])
    monkeypatch.setattr(tally, "MAX_LABELS", 19)
    with pytest.raises(TooManyLabels):
        import_files(home, "a", [file])
    monkeypatch.setattr(tally, "MAX_LABELS", 20)
    assert not list((home.datasets / "a").iterdir())
    assert len(import_files(home, "a", [file]).info.labels) == 20


def test_many_rows_in_row_groups(home: Home, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_UNIQUE", 1000)
    num_rows = 25_000
    file = source("a.csv", csv_of([(f"متن {n}", f"l{n % 2}") for n in range(num_rows)]))
    info = import_files(home, "a", [file]).info
    assert info.splits == {"train": 22_500, "validation": 2_500}
    assert (info.columns[0].num_unique, info.columns[0].num_unique_over) == (None, 1000)
    train = pq.ParquetFile(info.folder / "train.parquet")
    assert train.num_row_groups > 1
    assert all(train.metadata.row_group(group).num_rows < 2 * GROUP_ROWS for group in range(train.num_row_groups))
    everything = stored(info.folder, "train")
    assert read_part(info, "train", 9_995, 2000).rows == everything[9_995:11_995]
    assert read_part(info, None, 22_499, 5).rows == everything[22_499:]
    assert read_part(info, None, 30_000, 5).rows == []
    matching = [row for row in everything if "متن 2" in row["text"]]
    part = read_part(info, "train", 3000, 500, "متن ۲")
    assert (part.total, part.rows) == (len(matching), matching[3000:3500])


def test_an_answer_of_huge_rows_ends_early(home: Home, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kargah.datasets.stored.MAX_ANSWER_BYTES", 10_000)
    info = import_files(home, "a", [source("a.csv", csv_of([("x" * 3000, str(n)) for n in range(9)]))]).info
    found: list[Any] = []
    while len(found) < 9:
        part = read_part(info, None, len(found), 9)
        assert 1 <= len(part.rows) <= 4
        found += part.rows
    assert found == stored(info.folder, "train")


def test_a_damaged_folder_is_no_data_set(home: Home, source: Any) -> None:
    info = import_files(home, "a", [source("a.csv", "text,label\na,b\n")]).info
    (info.folder / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(FolderUnreadable):
        read_part(info, None, 0, 1)
    (info.folder / "train.parquet").unlink()
    with pytest.raises(FolderUnreadable):
        describe(info.folder)
    with pytest.raises(FolderUnreadable):
        describe(home.root)


def test_what_was_cut_short_is_swept(home: Home, source: Any) -> None:
    info = import_files(home, "a", [source("a.csv", "text,label\na,b\n")]).info
    for place in ("a/.x.partial", "b/.x.partial", "c/.x.deleted"):
        (home.datasets / place).mkdir(parents=True)
    sweep(home)
    assert [path.name for path in home.datasets.iterdir()] == ["a"]
    assert describe(info.folder) == info


def test_the_builtin_set(server: Any) -> None:
    load_builtin(server.registry)
    asset = server.get("/api/datasets")[0]
    assert asset["id"] == SUPPORT_ID
    assert (asset["status"], asset["source"], asset["licence"]) == ("ready", "builtin", "cc0-1.0")
    for place in ("kargah/support-fa", "kargah%2Fsupport-fa"):
        data = server.get(f"/api/datasets/{place}")
        assert data["revision"] == data["version"]
        assert data["task"] == "text-classification"
        assert [split["name"] for split in data["splits"]] == ["train", "validation", "test"]
        assert len(data["labels"]) == 16
        assert len(server.get(f"/api/datasets/{place}/rows", split="test", limit=5)["rows"]) == 5
    folder = server.home.root / "datasets/kargah--support-fa" / data["version"]
    before = folder.stat().st_ino
    load_builtin(server.registry)
    assert folder.stat().st_ino == before
    assert server.get("/api/datasets")[0]["downloadedAt"] == asset["downloadedAt"]
    assert server.client.delete(f"/api/assets/{SUPPORT_ID}").json()["error"] == "BUILTIN_ASSET"
    (folder / "dataset.json").unlink()
    load_builtin(server.registry)
    assert server.get(f"/api/datasets/{SUPPORT_ID}")["version"] == data["version"]
