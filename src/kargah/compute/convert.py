"""Pickled weights to safetensors, without running what a pickle may carry: `python -m kargah.compute.convert FOLDER`.

Reads `pytorch_model.bin`, or the shards its index names, with `torch.load(weights_only=True)`, which builds tensors and
nothing else. Prints one JSON line: `{"converted": [...], "file": "model.safetensors", "sizeBytes": n}`, or
`{"error": ..., "detail": ...}` with exit code 3 for a pickle that wants to do more (`UNSAFE_WEIGHTS`) and 1 for one
that is broken or missing (`MODEL_DAMAGED`). The originals stay unless `--remove` is given.
"""

import argparse
import json
import os
import pickle
import stat
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel

from kargah.compute.model import be_silent
from kargah.spec.layout import fsync_folder

EXIT_UNSAFE = 3
TARGET = "model.safetensors"
PICKLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


class WeightsUnsafe(Exception):
    """A pickle holds more than tensors; it was not run."""


class WeightsDamaged(Exception):
    """The pickled weights are missing, broken, or no flat table of tensors."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted: the names of the pickles, and the bytes of the new file."""

    converted: list[str]
    size_bytes: int


def convert_folder(folder: Path, *, remove: bool = False) -> Conversion:
    """Write `model.safetensors` from the pickled weights of a model folder, and read it back to compare.

    Names stay as they are (older ones, such as `gamma` and `beta`, transformers renames when it loads). A tensor that
    the model itself ties to another is left out, as `save_pretrained` does; any other that shares memory is copied.
    Raises `WeightsUnsafe`, `WeightsDamaged`, `OSError`.
    """
    names = _pickle_names(folder)
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensors.update(_load_pickle(folder / name))
    kept = _without_shared(tensors, _tied_names(folder))
    partial = folder / f".{TARGET}.partial"
    try:
        save_file(kept, partial, metadata={"format": "pt"})
        _compare(partial, kept)
        partial.chmod(stat.S_IMODE((folder / names[0]).stat().st_mode))
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, folder / TARGET)
    finally:
        partial.unlink(missing_ok=True)
    fsync_folder(folder)
    if remove:
        for name in [*names, INDEX]:
            (folder / name).unlink(missing_ok=True)
        fsync_folder(folder)
    return Conversion(names, (folder / TARGET).stat().st_size)


def main(argv: list[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m kargah.compute.convert", description="Pickle to safetensors.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--remove", action="store_true", help="remove the pickles once they are converted")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    arguments = parser.parse_args(argv)
    if arguments.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    be_silent()
    try:
        done = convert_folder(arguments.folder, remove=arguments.remove)
    except WeightsUnsafe as error:
        print(json.dumps({"error": "UNSAFE_WEIGHTS", "detail": str(error)}, ensure_ascii=False))
        return EXIT_UNSAFE
    except WeightsDamaged as error:
        print(json.dumps({"error": "MODEL_DAMAGED", "detail": str(error)}, ensure_ascii=False))
        return 1
    print(json.dumps({"converted": done.converted, "file": TARGET, "sizeBytes": done.size_bytes}, ensure_ascii=False))
    return 0


def _end_with_parent() -> None:
    """A server that died must not leave a writer behind in a folder that the next one will convert."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def _pickle_names(folder: Path) -> list[str]:
    if (folder / PICKLE).is_file():
        return [PICKLE]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError as error:
        raise WeightsDamaged(f"{folder.name} holds neither {PICKLE} nor {INDEX}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsDamaged(f"{INDEX} cannot be read") from error
    for name in names:
        if Path(name).name != name:
            raise WeightsDamaged(f"{INDEX} names a file outside its folder")
        if not (folder / name).is_file():
            raise WeightsDamaged(f"{name} is missing")
    return names


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsUnsafe(f"{path.name}: {_first_line(error)}") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise WeightsDamaged(f"{path.name}: {_first_line(error)}") from error
    if not isinstance(value, dict) or not value:
        raise WeightsDamaged(f"{path.name} is no table of tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsDamaged(f"{path.name}: {name} is no tensor")
    return cast(dict[str, torch.Tensor], value)


def _tied_names(folder: Path) -> dict[str, str]:
    """Names of weights the model ties by itself, each with the one it is tied to; empty when nothing tells.

    The model is built without memory for its weights, from the class that wrote the folder.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        known = getattr(transformers, (config.architectures or [""])[0], None)
        if not isinstance(known, type) or not issubclass(known, PreTrainedModel):
            return {}
        with torch.device("meta"):
            return dict(known(config).all_tied_weights_keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _without_shared(tensors: dict[str, torch.Tensor], tied: dict[str, str]) -> dict[str, torch.Tensor]:
    """Every tensor with memory of its own, without those that the model restores by tying."""
    kept: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        source = tensors.get(tied.get(name, ""))
        if source is not None and source.shape == tensor.shape and torch.equal(source, tensor):
            continue
        storage = tensor.untyped_storage()
        is_whole = storage.nbytes() == tensor.numel() * tensor.element_size()
        alone = is_whole and tensor.is_contiguous() and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        kept[name] = tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)
    return kept


def _compare(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            written = file.get_tensor(name)
            if written.dtype != tensor.dtype or not torch.equal(_bytes(written), _bytes(tensor)):
                raise WeightsDamaged(f"{name} was not written as it was read")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
