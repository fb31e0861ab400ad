"""Which files are wanted, which names are safe."""

import pytest

from kargah.hub.failure import TransferFailed
from kargah.hub.selection import check_paths, needs_remote_code, select

SAFE = ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "spiece.model", "README.md", "LICENSE"]


def test_a_model_prefers_safetensors_and_leaves_other_formats() -> None:
    others = [
        *("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
        *("model.gguf", "onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml", "coreml/a/model.mlmodel"),
        *(
            ".gitattributes",
            "picture.png",
            "modeling_own.py",
            "training_args.bin",
            "optimizer.pt",
            "model.fp16.safetensors",
        ),
        *("checkpoint-500/model.safetensors", "manifest.json", "README.png"),
    ]
    kept = [*SAFE, "1_Pooling/config.json", "chat_template.jinja"]
    selection = select("model", [*others, *kept])
    assert set(selection.paths) == set(kept)
    assert not selection.needs_conversion


def test_shards_come_with_their_index() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert set(select("model", [*shards, "consolidated.safetensors", "config.json"]).paths) == {*shards, "config.json"}


def test_pickled_weights_only_where_there_is_nothing_else() -> None:
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]
    selection = select("model", ["config.json", *shards, "tf_model.h5"])
    assert (set(selection.paths), selection.needs_conversion) == ({"config.json", *shards}, True)
    mixed = select("model", ["config.json", "model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin"])
    assert set(mixed.paths) == {"config.json", "model.safetensors", "2_Dense/pytorch_model.bin"}
    assert mixed.needs_conversion


@pytest.mark.parametrize("weights", ["tf_model.h5", "model.ckpt", "onnx/model.onnx", "model.gguf", "weights.pth"])
def test_weights_in_no_usable_format_are_said_so(weights: str) -> None:
    with pytest.raises(TransferFailed) as caught:
        select("model", ["config.json", weights])
    assert caught.value.code == "UNSAFE_WEIGHTS"


def test_a_data_set_is_its_tables() -> None:
    tables = ["a.csv", "b.tsv", "c.json", "d/e.jsonl", "d/f.parquet", "g.txt", "h.csv.gz", "i.jsonl.zst", "README.md"]
    rest = ["a.py", "b.png", ".gitattributes", ".git/x.json", "c.arrow", "archive.zip"]
    assert set(select("dataset", [*tables, *rest]).paths) == set(tables)
    assert select("dataset", [*tables, *rest], ["d/*", "c.arrow"]).paths == ("d/e.jsonl", "d/f.parquet", "c.arrow")


@pytest.mark.parametrize(
    ("paths", "patterns", "code"),
    [
        (["load.py", "README.md"], [], "NEEDS_REMOTE_CODE"),
        (["a.zip"], [], "FILE_NOT_FOUND"),
        (["a.csv"], ["*.parquet"], "FILE_NOT_FOUND"),
    ],
)
def test_a_data_set_with_nothing_to_fetch(paths: list[str], patterns: list[str], code: str) -> None:
    with pytest.raises(TransferFailed) as caught:
        select("dataset", paths, patterns)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("config", "has_code", "needed"),
    [
        ({"model_type": "bert"}, True, False),
        ({"model_type": "bert", "auto_map": {"AutoModel": "m.M"}}, False, True),
        ({"model_type": "bert", "auto_map": {}}, True, False),
        ({"architectures": ["Own"]}, True, True),
        ({}, False, False),
        (None, True, True),
        (None, False, False),
        ([1], True, True),
    ],
)
def test_remote_code(config: object, has_code: bool, needed: bool) -> None:
    assert needs_remote_code(config, has_code=has_code) is needed


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/a",
            "../a",
            "a/../b",
            "a/./b",
            "a//b",
            "a/",
            "..",
            "a\\b",
            "C:a",
            "c:/a",
            "a\0b",
            "a\nb",
            "a\x7f",
            "a\x85b",
        ),
        *("\udc80", "ب" * 121, "a/" + "b" * 241, "/".join(["abc"] * 300)),
    ],
)
def test_unsafe_paths(path: str) -> None:
    with pytest.raises(TransferFailed) as caught:
        check_paths(["config.json", path])
    assert (caught.value.code, caught.value.params) == ("UNSAFE_PATH", {"path": path})


@pytest.mark.parametrize("paths", [["a", "a/b"], ["A/b", "a"], ["Readme.md", "README.md"]])
def test_paths_that_clash(paths: list[str]) -> None:
    with pytest.raises(TransferFailed, match="UNSAFE_PATH"):
        check_paths(paths)


def test_persian_and_other_safe_paths() -> None:
    check_paths(["داده‌ها/واژه‌نامه ي قدیمی.txt", "ب" * 120, "a b/c:d.txt", "...", "..a", "😀.json", "x" * 240])
