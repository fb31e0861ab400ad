"""Which files of a repository are wanted, and whether its file names may touch our disk at all."""

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kargah.hub.failure import TransferFailed
from kargah.spec.manifest import MANIFEST

MAX_PART_BYTES = 240
MAX_PATH_BYTES = 1024
MAX_PARTS = 64

_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_SAFETENSORS = re.compile(r"\.safetensors$")
_CANONICAL_SAFETENSORS = re.compile(r"^(adapter_)?model(-\d+-of-\d+)?\.safetensors$")
_PICKLED_WEIGHTS = re.compile(r"^(pytorch_model|adapter_model)(-\d+-of-\d+)?\.bin$")
_OTHER_WEIGHTS = re.compile(r"\.(h5|msgpack|ot|onnx|gguf|ggml|ckpt|pt|pth|bin|tflite|mlmodel|pdparams|pkl|npz)$")
_SKIPPED_FOLDERS = re.compile(r"^(onnx|openvino|coreml|tflite|\.git|\.cache|runs|checkpoint-\d+)$", re.IGNORECASE)
_MODEL_FILES = re.compile(
    r"\.(json|jsonl|txt|model|spm|vocab|bpe|codes|tiktoken|jinja|tsv|md|rst|ya?ml)$|^(README|LICEN[CS]E|NOTICE)$",
    re.IGNORECASE,
)
_WEIGHT_INDEX = re.compile(r"\.(h5|msgpack|bin|safetensors)\.index\.json$")
_TABLES = re.compile(r"\.(csv|tsv|json|jsonl|parquet|txt)(\.(gz|zst))?$", re.IGNORECASE)
_PAPERS = re.compile(r"^(README|LICEN[CS]E|NOTICE)(\.(md|txt|rst))?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen paths, in the order given. `needs_conversion`: some weights are pickle files."""

    paths: tuple[str, ...]
    needs_conversion: bool = False


def check_paths(paths: Iterable[str]) -> None:
    """Refuse a repository of which one path could leave its folder or not be written. Raises `TransferFailed`.

    A path that is another one's folder, and two that differ in case or in the composition of letters alone, are
    refused as well: on some file systems they are one file.
    """
    seen: dict[str, str] = {}
    for path in paths:
        problem = _problem_of(path)
        if problem is None and seen.setdefault(_as_one_file(path), path) != path:
            problem = "differs from another path in case or in the composition of letters alone"
        if problem is not None:
            raise TransferFailed("UNSAFE_PATH", f"{path!r} {problem}", path=path)
    folders: set[str] = set()
    for name in seen:
        # Folders are gone through from below, as far as they are new.
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            if folder in seen:
                raise TransferFailed("UNSAFE_PATH", f"{seen[folder]!r} is a file and a folder", path=seen[folder])
            folders.add(folder)
            folder = folder.rpartition("/")[0]


def select(kind: str, paths: Sequence[str], patterns: Sequence[str] = ()) -> Selection:
    """Choose the files of a model or a data set, by `patterns` (shell style, whole path) or by what the kind needs.

    A model's weights come as safetensors; `pytorch_model*.bin` only from a folder that has none. A root
    `manifest.json` is left out: the snapshot's own takes its place. Raises `TransferFailed`: `NEEDS_REMOTE_CODE` for a
    data set that is nothing but a script, `UNSAFE_WEIGHTS` for a model whose weights come in no format that can be
    loaded, `FILE_NOT_FOUND` when nothing is left.
    """
    if patterns:
        selection = _by_patterns(paths, patterns)
    elif kind == "model":
        selection = _model(paths)
    else:
        selection = Selection(tuple(path for path in paths if not _in_skipped_folder(path) and _is_table(path)))
        if not any(_TABLES.search(path) for path in selection.paths) and any(path.endswith(".py") for path in paths):
            raise TransferFailed("NEEDS_REMOTE_CODE", "the data set is a script without data files")
    kept = tuple(path for path in selection.paths if path != MANIFEST)
    if not kept:
        raise TransferFailed("FILE_NOT_FOUND", "the repository holds no file of the wanted kinds")
    return Selection(kept, selection.needs_conversion)


def needs_remote_code(config: object, *, has_code: bool) -> bool:
    """Whether a model can only be loaded by its own code: `auto_map` in its config, or modelling files and no type."""
    if not isinstance(config, dict):
        return has_code
    return bool(config.get("auto_map")) or (has_code and not config.get("model_type"))


def _as_one_file(path: str) -> str:
    """What two paths have in common that some file system takes for one."""
    return unicodedata.normalize("NFC", path.casefold())


def _problem_of(path: str) -> str | None:
    if not path or path.startswith("/") or "\\" in path or _DRIVE.match(path) or _CONTROL.search(path):
        return "is not a relative path of plain characters"
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not Unicode text"
    if len(encoded) > MAX_PATH_BYTES:
        return "is too long"
    parts = encoded.split(b"/")
    if len(parts) > MAX_PARTS:
        return "is too deep"
    for part in parts:
        if part in (b"", b".", b".."):
            return "has an empty or dotted part"
        if len(part) > MAX_PART_BYTES:
            return "has too long a part"
    return None


def _by_patterns(paths: Sequence[str], patterns: Sequence[str]) -> Selection:
    chosen = tuple(path for path in paths if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns))
    return Selection(chosen, any(_PICKLED_WEIGHTS.match(PurePosixPath(path).name) for path in chosen))


def _model(paths: Sequence[str]) -> Selection:
    candidates = [path for path in paths if not _in_skipped_folder(path)]
    weights: list[str] = []
    pickled = False
    folders: dict[str, list[str]] = {}
    for path in candidates:
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    for names in folders.values():
        chosen = _matching(names, _CANONICAL_SAFETENSORS.match) or _matching(names, _SAFETENSORS.search)
        if not chosen:
            chosen = _matching(names, _PICKLED_WEIGHTS.match)
            pickled = pickled or bool(chosen)
        weights += chosen
    if not weights and any(_OTHER_WEIGHTS.search(path) for path in paths):
        raise TransferFailed("UNSAFE_WEIGHTS", "the weights come neither as safetensors nor as pytorch_model*.bin")
    index = ".bin.index.json" if pickled else ".safetensors.index.json"
    wanted = set(weights)
    for path in candidates:
        name = PurePosixPath(path).name
        if _WEIGHT_INDEX.search(name):
            if name.endswith(index):
                wanted.add(path)
        elif _MODEL_FILES.search(name):
            wanted.add(path)
    return Selection(tuple(path for path in paths if path in wanted), pickled)


def _matching(paths: Iterable[str], matches: Callable[[str], object]) -> list[str]:
    return [path for path in paths if matches(PurePosixPath(path).name)]


def _in_skipped_folder(path: str) -> bool:
    return any(_SKIPPED_FOLDERS.match(part) for part in PurePosixPath(path).parts[:-1])


def _is_table(path: str) -> bool:
    name = PurePosixPath(path).name
    return not name.startswith(".git") and bool(_TABLES.search(name) or _PAPERS.search(name))
