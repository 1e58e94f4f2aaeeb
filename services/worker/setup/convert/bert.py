"""MiniLM: a Hugging Face BERT as it is, minus what is no weight.

Names are those of `BertModel`: `embeddings.word_embeddings.weight`, `encoder.layer.{i}.attention.self.query.weight`…
The buffer `embeddings.position_ids` (0, 1, 2, …) is checked and left out.

The tokenizer of the package pads every text to 128 tokens and cuts it there. Both are the server's business (it pads
to the longest of a batch, and cuts at `limits.max_tokens`), so they are taken out of `tokenizer.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from . import weights


def convert(source: Path, directory: Path) -> None:
    """`source` is the unpacked package's `model` folder."""
    checkpoint = source / "model.safetensors"
    stored = load_file(checkpoint)
    tensors = weights.Source(stored)
    positions = tensors.take("embeddings.position_ids", (1, 512))
    if not np.array_equal(positions[0], np.arange(512)):
        raise weights.Error("embeddings.position_ids is not 0, 1, 2, …")
    out = {name: tensors.take(name) for name in stored if name != "embeddings.position_ids"}
    tensors.finish()

    config = json.loads((source / "config.json").read_text())
    sentence = json.loads((source / "sentence_bert_config.json").read_text())
    pooling = json.loads((source / "1_Pooling/config.json").read_text())
    if not pooling["pooling_mode_mean_tokens"]:
        raise weights.Error("the checkpoint does not pool by the mean, which is all that the engine knows")
    config |= {"pooling": "mean", "normalize": True, "max_seq_length": sentence["max_seq_length"]}

    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer |= {"truncation": None, "padding": None}
    weights.write_json(directory / "tokenizer.json", tokenizer)
    conversion = {
        "format": "Hugging Face safetensors",
        "source_sha256": weights.sha256(checkpoint),
        "source_tensors": tensors.count,
        "left_out": {"embeddings.position_ids": "a buffer, 0 to 511"},
    }
    weights.write("minilm", directory, out, config, conversion)
