"""Reads a state dict saved by PyTorch before 1.6, without PyTorch.

The set-up would otherwise need an installed torch of half a gigabyte to read one file of 18 MB. The layout is that of
`torch.serialization._legacy_save`: five pickles (magic number, protocol, system facts, the object, the storage keys),
then for every storage key an int64 count and the raw little-endian elements.

Unpickling runs whatever a file names, so only the three names that a state dict of tensors needs are let through.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class Error(Exception):
    """The file is not what this reader knows."""


@dataclass
class _Storage:
    """A storage whose elements come later in the file."""

    dtype: np.dtype
    key: str
    count: int


@dataclass
class _Tensor:
    """A view into a storage, as the pickle describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, shape, stride)


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise Error(f"the file asks for {module}.{name}, which no state dict needs")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, count, *_ = pid
        if kind != "storage":
            raise Error(f"unknown persistent object {kind!r}")
        return _Storage(dtype, key, count)


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the state dict's tensors by name."""
    file = io.BytesIO(path.read_bytes())
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != PROTOCOL:
        raise Error(f"{path.name} is not in PyTorch's legacy format")
    if not _Unpickler(file).load()["little_endian"]:
        raise Error(f"{path.name} is big-endian")
    tensors: dict[str, _Tensor] = _Unpickler(file).load()
    keys: list[str] = _Unpickler(file).load()

    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    elements: dict[str, np.ndarray] = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        storage = storages[key]
        if count != storage.count:
            raise Error(f"storage {key} has {count} elements, announced were {storage.count}")
        raw = file.read(count * storage.dtype.itemsize)
        elements[key] = np.frombuffer(raw, storage.dtype)
    if file.read(1):
        raise Error(f"{path.name} goes on after its last storage")

    return {name: _view(tensor, elements[tensor.storage.key]) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, elements: np.ndarray) -> np.ndarray:
    itemsize = elements.dtype.itemsize
    strides = tuple(step * itemsize for step in tensor.stride)
    view = np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, strides)
    return view.copy()
