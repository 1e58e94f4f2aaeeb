"""Whisper from CTranslate2 (version 6 of its model file) to Hugging Face's names.

The file is little-endian: u32 version, a name, u32 revision, u32 count; per variable a name, u8 rank, u32 dimensions,
u8 type, u32 bytes, the bytes; then u32 aliases, pairs of names. A name is a u16 length (its final NUL counts) and that
many bytes (CTranslate2, `python/ctranslate2/specs/model_spec.py`).

CTranslate2 fuses projections: `self_attention/linear_0` is Q, K, V stacked, `linear_1` the output; in cross attention
`linear_0` is Q, `linear_1` K and V, `linear_2` the output. Whisper's K has no bias: the stacked one is checked to be
zero there, and left out. Weights stay as they are, f16. The output projection is the token embedding.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from . import weights

# CTranslate2's DataType, in its order.
DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}

# Facts of the architecture that CTranslate2 stores as variables, and the values that Whisper must have.
CONSTANTS = {
    "activation": 3,  # exact GELU
    "alibi": 0,
    "pre_norm": 1,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
    "alignment_heads": 1,
    "alignment_layer": -1,
}

NORMS = {"gamma": "weight", "beta": "bias"}


def read(data: bytes) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 model file."""
    position = 0

    def number(form: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from("<" + form, data, position)
        position += struct.calcsize(form)
        return value

    def name() -> str:
        nonlocal position
        length = number("H")
        text = data[position : position + length - 1].decode()
        position += length
        return text

    version, spec = number("I"), name()
    if (version, spec) != (6, "WhisperSpec"):
        raise weights.Error(f"CTranslate2 version {version}, {spec}: expected 6, WhisperSpec")
    number("I")
    variables: dict[str, np.ndarray] = {}
    for _ in range(number("I")):
        key = name()
        shape = tuple(number("I") for _ in range(number("B")))
        dtype = np.dtype(DTYPES[number("B")])
        size = number("I")
        variables[key] = np.frombuffer(data, dtype, size // dtype.itemsize, position).reshape(shape)
        position += size
    aliases = {name(): name() for _ in range(number("I"))}
    if aliases != {"decoder/projection/weight": "decoder/embeddings/weight"}:
        raise weights.Error(f"unexpected aliases {aliases}")
    if position != len(data):
        raise weights.Error(f"{len(data) - position} bytes left after the last variable")
    return variables


def convert(model: str, parts: list[Path], folder: Path, directory: Path) -> None:
    """`parts` concatenated are `model.bin`; `folder` has the package's `config.json` and `tokenizer.json`."""
    data = b"".join(part.read_bytes() for part in parts)
    tensors = weights.Source(read(data))
    for key, value in CONSTANTS.items():
        if (found := int(tensors.take(f"decoder/{key}"))) != value:
            raise weights.Error(f"decoder/{key} is {found}, expected {value}")
    out: dict[str, np.ndarray] = {}
    layers = {side: _convert_side(tensors, side, out) for side in ("encoder", "decoder")}
    heads = {side: int(tensors.take(f"{side}/num_heads")) for side in ("encoder", "decoder")}
    tensors.finish()

    tokenizer = folder / "tokenizer.json"
    (directory / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    config = _config(out, layers, heads, folder)
    conversion = {
        "format": "CTranslate2, version 6",
        "source_sha256": [weights.sha256(part) for part in parts],
        "source_tensors": tensors.count,
        "left_out": {"key biases": "zero", **{f"decoder/{key}": "a constant" for key in CONSTANTS}},
    }
    weights.write(model, directory, out, config, conversion)


def _convert_side(tensors: weights.Source, side: str, out: dict[str, np.ndarray]) -> int:
    """Converts encoder or decoder; returns its number of layers."""
    prefix = f"model.{side}"
    out[f"{prefix}.embed_positions.weight"] = tensors.take(f"{side}/position_encodings/encodings")
    if side == "encoder":
        for conv in ("conv1", "conv2"):
            for part in ("weight", "bias"):
                out[f"{prefix}.{conv}.{part}"] = tensors.take(f"{side}/{conv}/{part}")
    else:
        out[f"{prefix}.embed_tokens.weight"] = tensors.take(f"{side}/embeddings/weight")
    _norm(tensors, f"{side}/layer_norm", out, f"{prefix}.layer_norm")
    count = tensors.layers(side)
    for i in range(count):
        _convert_layer(tensors, f"{side}/layer_{i}", out, f"{prefix}.layers.{i}", side == "decoder")
    return count


def _convert_layer(
    tensors: weights.Source, old: str, out: dict[str, np.ndarray], new: str, decoder: bool
) -> None:
    _norm(tensors, f"{old}/self_attention/layer_norm", out, f"{new}.self_attn_layer_norm")
    _linear(tensors, f"{old}/self_attention/linear_0", out, f"{new}.self_attn", ["q_proj", "k_proj", "v_proj"])
    _linear(tensors, f"{old}/self_attention/linear_1", out, f"{new}.self_attn", ["out_proj"])
    if decoder:
        _norm(tensors, f"{old}/attention/layer_norm", out, f"{new}.encoder_attn_layer_norm")
        _linear(tensors, f"{old}/attention/linear_0", out, f"{new}.encoder_attn", ["q_proj"])
        _linear(tensors, f"{old}/attention/linear_1", out, f"{new}.encoder_attn", ["k_proj", "v_proj"])
        _linear(tensors, f"{old}/attention/linear_2", out, f"{new}.encoder_attn", ["out_proj"])
    _norm(tensors, f"{old}/ffn/layer_norm", out, f"{new}.final_layer_norm")
    _linear(tensors, f"{old}/ffn/linear_0", out, new, ["fc1"])
    _linear(tensors, f"{old}/ffn/linear_1", out, new, ["fc2"])


def _norm(tensors: weights.Source, old: str, out: dict[str, np.ndarray], new: str) -> None:
    for theirs, ours in NORMS.items():
        out[f"{new}.{ours}"] = tensors.take(f"{old}/{theirs}")


def _linear(tensors: weights.Source, old: str, out: dict[str, np.ndarray], new: str, names: list[str]) -> None:
    """Splits a stacked projection into the ones that it was made of."""
    weight = np.split(tensors.take(f"{old}/weight"), len(names))
    bias = np.split(tensors.take(f"{old}/bias"), len(names))
    for name, rows, offset in zip(names, weight, bias, strict=True):
        out[f"{new}.{name}.weight"] = rows
        if name != "k_proj":
            out[f"{new}.{name}.bias"] = offset
        elif offset.any():
            raise weights.Error(f"{old}: keys with a bias")


def _config(
    out: dict[str, np.ndarray], layers: dict[str, int], heads: dict[str, int], folder: Path
) -> dict[str, Any]:
    """`config.json` in Hugging Face's terms, with what generation needs to know."""
    facts = json.loads((folder / "config.json").read_text())
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"].strip("<|>"): token["id"] for token in added}
    vocabulary, width = out["model.decoder.embed_tokens.weight"].shape
    first, last = ids["en"], ids["translate"]
    return {
        "model_type": "whisper",
        "d_model": width,
        "vocab_size": vocabulary,
        "num_mel_bins": out["model.encoder.conv1.weight"].shape[1],
        "encoder_layers": layers["encoder"],
        "encoder_attention_heads": heads["encoder"],
        "encoder_ffn_dim": out["model.encoder.layers.0.fc1.weight"].shape[0],
        "decoder_layers": layers["decoder"],
        "decoder_attention_heads": heads["decoder"],
        "decoder_ffn_dim": out["model.decoder.layers.0.fc1.weight"].shape[0],
        "max_source_positions": out["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": out["model.decoder.embed_positions.weight"].shape[0],
        "activation_function": "gelu",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        # The English models' vocabulary is GPT-2's own, one token shorter.
        "multilingual": vocabulary >= 51865,
        "suppress_tokens": facts["suppress_ids"],
        "begin_suppress_tokens": facts["suppress_ids_begin"],
        "eot": ids["endoftext"],
        "sot": ids["startoftranscript"],
        "translate": ids["translate"],
        "transcribe": ids["transcribe"],
        "sot_lm": ids["startoflm"],
        "sot_prev": ids["startofprev"],
        "no_speech": ids["nocaptions"],
        "no_timestamps": ids["notimestamps"],
        # <|0.00|>; one id per 20 ms from here to <|30.00|>. They are not in tokenizer.json.
        "timestamp_begin": ids["notimestamps"] + 1,
        "timestamp_end": vocabulary - 1,
        "languages": {name: number for name, number in ids.items() if first <= number < last},
    }
