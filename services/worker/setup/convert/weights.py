"""Weights on their way from a package to `model.safetensors`, with proof that none was lost.

A converter *takes* each tensor of its source exactly once; whatever is left over fails the set-up, so a tensor cannot
be forgotten. What was written is read back and compared with the sums noted in `expected.json`, so a converter (or a
library under it) that changes its mind fails too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

EXPECTED = Path(__file__).with_name("expected.json")

# A sum of 1e8 numbers in float64 is good to about 1e-12; anything past this is another number, not another order.
TOLERANCE = 1e-9


class Error(Exception):
    """A tensor is missing, left over, or not what it should be."""


class Source:
    """The tensors of a package, each of which must be used once."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._left = dict(tensors)
        self.count = len(self._left)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Removes and returns the tensor, after a look at its shape."""
        if name not in self._left:
            raise Error(f"the source has no tensor {name} (or it was used before)")
        tensor = self._left.pop(name)
        if shape is not None and tensor.shape != shape:
            raise Error(f"{name} has shape {tensor.shape}, expected {shape}")
        return tensor

    def layers(self, prefix: str) -> int:
        """How many `<prefix>/layer_<i>/…` there are."""
        parts = (name.removeprefix(f"{prefix}/layer_").split("/") for name in self._left)
        return len({number for number, *rest in parts if rest and number.isdigit()})

    def finish(self) -> None:
        """Fails if anything was forgotten."""
        if self._left:
            raise Error(f"tensors of the source that were not converted: {sorted(self._left)}")


def sha256(path: Path) -> str:
    """The file's checksum in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Counts and sums by which a set of tensors is known again."""
    wide = [tensor.astype(np.float64) for _, tensor in sorted(tensors.items())]
    return {
        "tensors": len(tensors),
        "parameters": sum(tensor.size for tensor in wide),
        "sum": float(sum(tensor.sum() for tensor in wide)),
        "absolute_sum": float(sum(np.abs(tensor).sum() for tensor in wide)),
        "dtypes": sorted({str(tensor.dtype) for tensor in tensors.values()}),
    }


def write(
    model: str,
    directory: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    conversion: Mapping[str, Any],
) -> None:
    """Writes `model.safetensors`, `config.json` and `conversion.json`, and checks what was written."""
    path = directory / "model.safetensors"
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    if bad := [name for name, tensor in whole.items() if not np.isfinite(tensor).all()]:
        raise Error(f"{model}: not finite: {bad}")
    save_file(whole, path, metadata={"format": "pt"})
    path.chmod(directory.stat().st_mode & 0o666)  # made for its owner alone: who may enter may read

    found = fingerprint(load_file(path))
    _compare(model, found, json.loads(EXPECTED.read_text())[model])
    shapes = {name: list(tensor.shape) for name, tensor in sorted(whole.items())}
    write_json(directory / "config.json", config)
    write_json(
        directory / "conversion.json",
        {**conversion, "output_sha256": sha256(path), "fingerprint": found, "shapes": shapes},
    )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as people read it."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _compare(model: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key in ("tensors", "parameters", "dtypes"):
        if found[key] != expected[key]:
            raise Error(f"{model}: {key} is {found[key]}, expected {expected[key]}")
    for key in ("sum", "absolute_sum"):
        if abs(found[key] - expected[key]) > TOLERANCE * expected["absolute_sum"]:
            raise Error(f"{model}: {key} is {found[key]!r}, expected {expected[key]!r}")
