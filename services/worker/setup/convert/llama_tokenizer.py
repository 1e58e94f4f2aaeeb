"""`tokenizer.json` out of a GGUF's vocabulary and merges.

SmolLM's tokenizer is GPT-2's byte-level BPE with one change, which GGUF records only as the name of a pre-tokenizer
(`smollm`): digits are split one by one first. Token types of GGUF: 1 is normal, 3 is control, which is what Hugging
Face calls a special added token.
"""

from __future__ import annotations

from typing import Any

from . import weights

CONTROL = 3


def build(facts: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a Hugging Face `tokenizers` tokenizer."""
    kind = (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise weights.Error(f"tokenizer {kind}, expected gpt2 with smollm's splitting")
    if facts["tokenizer.ggml.add_bos_token"] or facts["tokenizer.ggml.add_space_prefix"]:
        raise weights.Error("the tokenizer adds tokens or spaces of its own, which is not built here")
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    types: list[int] = facts["tokenizer.ggml.token_type"]
    merges: list[str] = facts["tokenizer.ggml.merges"]
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise weights.Error("tokens are not unique, or lack a type")

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, (token, type_) in enumerate(zip(tokens, types, strict=True))
            if type_ == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }
