"""SmolLM2 from GGUF to Hugging Face's Llama: weights, config and tokenizer.

Q4_1 and Q8_0 blocks are dequantised and stored as f16: the values are `scale * integer + minimum` of f16 scales, so
f16 loses up to half a unit of its last place (bf16 eight times that, f32 nothing but twice the size). The loss is
measured and written to `conversion.json`; the set-up fails where it is larger than f16 allows.

GGUF keeps the rows of q and k so that rotary pairs are neighbours (x0, x1); Hugging Face rotates halves (x0, x32).
`_half_rotation` undoes that permutation (llama.cpp, `LlamaModel.permute`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from . import llama_tokenizer, weights

# Half a unit in the last place of f16, relative.
F16_EPSILON = 2.0**-11

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, directory: Path) -> None:
    """`source` is the package's `.gguf`."""
    reader = gguf.GGUFReader(source)
    facts: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(facts)
    stored = {item.name: item for item in reader.tensors}
    tensors = weights.Source(
        {name: gguf.dequantize(item.data, item.tensor_type).astype(np.float32) for name, item in stored.items()}
    )

    wide: dict[str, np.ndarray] = {
        "model.embed_tokens.weight": tensors.take(
            "token_embd.weight", (config["vocab_size"], config["hidden_size"])
        ),
        "model.norm.weight": tensors.take("output_norm.weight"),
    }
    for i in range(config["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            wide[f"model.layers.{i}.{ours}.weight"] = tensors.take(f"blk.{i}.{theirs}.weight")
        for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            key = f"model.layers.{i}.self_attn.{name}_proj.weight"
            wide[key] = _half_rotation(wide[key], config[heads])
    tensors.finish()

    # Norms are f32 in the source, few, and stay so.
    out = {name: tensor if tensor.ndim == 1 else tensor.astype(np.float16) for name, tensor in wide.items()}
    weights.write_json(directory / "tokenizer.json", llama_tokenizer.build(facts))
    conversion = {
        "format": "GGUF",
        "source_sha256": weights.sha256(source),
        "source_tensors": tensors.count,
        "quantisation": _count(item.tensor_type.name for item in stored.values()),
        "rounding": _rounding(wide, out),
    }
    weights.write("smollm2-135m", directory, out, config, conversion)


def _config(facts: dict[str, Any]) -> dict[str, Any]:
    if facts["general.architecture"] != "llama":
        raise weights.Error(f"architecture {facts['general.architecture']}, expected llama")
    width, heads = facts["llama.embedding_length"], facts["llama.attention.head_count"]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": width,
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "max_position_embeddings": facts["llama.context_length"],
        # GGUF keeps it as f32; the checkpoint says 1e-5.
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": facts["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "dtype": "float16",
    }


def _half_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of every head from (pair, side) to (side, pair)."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _rounding(wide: dict[str, np.ndarray], out: dict[str, np.ndarray]) -> dict[str, float]:
    """What f16 cost, and what bf16 would have."""
    largest, squares, squares_bf16, total = 0.0, 0.0, 0.0, 0.0
    for name, tensor in wide.items():
        exact = tensor.astype(np.float64)
        error = np.abs(exact - out[name].astype(np.float64))
        # Below 2^-14 f16 is subnormal, and its error absolute.
        largest = max(largest, float((error / np.maximum(np.abs(exact), 2.0**-14)).max()))
        squares += float((error**2).sum())
        squares_bf16 += float(((exact - _bf16(tensor)) ** 2).sum())
        total += float((exact**2).sum())
    if largest > F16_EPSILON:
        raise weights.Error(f"f16 lost {largest:.2e} of a weight, at most {F16_EPSILON:.2e} was expected")
    return {
        "largest_relative_error": largest,
        "relative_rms_error": (squares / total) ** 0.5,
        "relative_rms_error_had_it_been_bf16": (squares_bf16 / total) ** 0.5,
    }


def _bf16(tensor: np.ndarray) -> np.ndarray:
    """The nearest bf16, ties to even, as f32."""
    bits = tensor.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def _count(names: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
