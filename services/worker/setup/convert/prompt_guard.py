"""jailguard's classifier: a JSON of nested lists, 384 → 256 → 128 → 1 over the MiniLM sentence embedding.

    p = sigmoid(layers.2(relu(layers.1(relu(layers.0(x))))))

`layers.{i}.weight` is `[out, in]`, as `torch.nn.Linear` has it. The numbers are decimal f32.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from . import weights

LAYERS = [("w_h1", "b_h1", 256, 384), ("w_h2", "b_h2", 128, 256), ("w_out", "b_out", 1, 128)]

CONFIG = {
    "model_type": "mlp",
    "sizes": [384, 256, 128, 1],
    "hidden_activation": "relu",
    "output_activation": "sigmoid",
    "threshold": 0.5,
}


def convert(source: Path, directory: Path) -> None:
    """`source` is the crate's `neural_binary_200k.json`."""
    lists = json.loads(source.read_text())
    # Facts of the training, no weights.
    training = {key: lists.pop(key) for key in ("learning_rate", "dropout_rate")}
    tensors = weights.Source({name: np.asarray(value, np.float32) for name, value in lists.items()})
    out: dict[str, np.ndarray] = {}
    for i, (weight, bias, rows, columns) in enumerate(LAYERS):
        out[f"layers.{i}.weight"] = tensors.take(weight, (rows, columns))
        out[f"layers.{i}.bias"] = tensors.take(bias, (rows,))
    tensors.finish()
    conversion = {
        "format": "JSON",
        "source_sha256": weights.sha256(source),
        "source_tensors": tensors.count,
        "training": training,
    }
    weights.write("prompt-guard", directory, out, CONFIG, conversion)
