"""Copies of a training's state in memory, so that it can be written to disk while training goes on.

Whole storages are copied, not tensors: what shares memory shares it in the copy too (tied weights are written once),
and `torch.save` and safetensors write the same bytes as they would for the original.
"""

import copy
import ctypes
import threading
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Snapshot:
    """One copy of a nested value with tensors in it. Its memory is kept, and written over by the next copy.

    That memory is in the CPU; pinned for what comes from CUDA. Memory that is new to the process costs more time than
    copying, which is why it is kept.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._touching: threading.Thread | None = None

    def reserve(self, value: Any) -> None:
        """Get the memory for copies of `value` ready, in a thread of its own."""
        self._wait()
        for number, storage in enumerate(_storages(_tensors(value)).values()):
            self._buffer(number, storage)
        self._touching = threading.Thread(target=_touch, args=(list(self._buffers),), name="snapshot-memory")
        self._touching.start()

    def take(self, value: T) -> T:
        """A copy of `value`, good until the next one is taken. Tensors in it stand in dicts, lists and tuples."""
        self._wait()
        tensors = _tensors(value)
        storages = _storages(tensors)
        copies: dict[int, torch.UntypedStorage] = {}
        for number, (key, storage) in enumerate(storages.items()):
            buffer = self._buffer(number, storage)
            _copy(storage, buffer)
            copies[key] = buffer.untyped_storage()
        if any(storage.device.type == "cuda" for storage in storages.values()):
            torch.cuda.synchronize()
        # deepcopy asks its memory first: every tensor is found there, whatever else is in `value` is copied.
        memory: dict[int, Any] = {id(tensor): _like(tensor, copies[_key(tensor)]) for tensor in tensors}
        return copy.deepcopy(value, memory)

    def _wait(self) -> None:
        if self._touching is not None:
            self._touching.join()
            self._touching = None

    def _buffer(self, number: int, storage: torch.UntypedStorage) -> torch.Tensor:
        """The buffer for the storage met as number so and so: the one of last time when it is as large."""
        size = storage.nbytes()
        if number < len(self._buffers) and len(self._buffers[number]) == size:
            return self._buffers[number]
        made = torch.empty(size, dtype=torch.uint8, pin_memory=storage.device.type == "cuda")
        self._buffers[number : number + 1] = [made]
        return made


def _copy(storage: torch.UntypedStorage, buffer: torch.Tensor) -> None:
    if storage.device.type == "cpu":
        # One thread is as fast as memory. torch would wait for all of its threads at every tensor: on a busy machine
        # that was measured to take five times as long.
        ctypes.memmove(buffer.data_ptr(), storage.data_ptr(), storage.nbytes())
    else:
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        buffer.copy_(whole, non_blocking=True)


def _touch(buffers: list[torch.Tensor]) -> None:
    # Not by torch, which would keep a second set of threads for this one.
    for buffer in buffers:
        ctypes.memset(buffer.data_ptr(), 0, len(buffer))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in _tensors(inner)]
    if isinstance(value, list | tuple):
        return [tensor for inner in value for tensor in _tensors(inner)]
    return []


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _storages(tensors: list[torch.Tensor]) -> dict[int, torch.UntypedStorage]:
    """Each storage once, in the order it is met."""
    return {_key(tensor): tensor.untyped_storage() for tensor in tensors}


def _like(tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    with torch.no_grad():
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
