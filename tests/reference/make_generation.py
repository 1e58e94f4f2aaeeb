"""Greedy continuations: transformers' LlamaForCausalLM in f32, on our converted weights.

Needs: torch, transformers. The GGUF's own quantised arithmetic (llama.cpp) is another question: it also rounds
activations, so that its greedy path parts from anybody's f32 path sooner or later.

`margin` is the smallest gap between the best and the second logit on the way: where it is small, another order of
summation may rightly take the other branch.
"""

from __future__ import annotations

import tomllib

import places
import tokenizers
import torch
import transformers

RAW = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "1, 2, 3, 4, 5,",
]

CHAT = ["What is the capital of Italy?", "Write one sentence about the sea."]
STEPS = 32


def main() -> None:
    """Writes generation.json."""
    folder = places.version("smollm2-135m")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    template = tomllib.loads((folder.parent / "model.toml").read_text())["generation"]["chat_template"]
    stop = tokenizer.token_to_id("<|im_end|>")
    prompts = [(text, text) for text in RAW] + [(text, template.replace("{prompt}", text)) for text in CHAT]
    items = []
    for text, prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        out, margin = greedy(model, ids, stop)
        items.append(
            {
                "prompt": text,
                "chat": prompt != text,
                "prompt_tokens": ids,
                "tokens": out,
                "text": tokenizer.decode(out),
                "margin": round(margin, 4),
            }
        )
        print(repr(items[-1]["text"]), margin)
    places.write("generation", f"transformers {transformers.__version__}, LlamaForCausalLM, f32", {"items": items})


@torch.inference_mode()
def greedy(model: transformers.LlamaForCausalLM, ids: list[int], stop: int) -> tuple[list[int], float]:
    """Up to `STEPS` tokens, the stop token included, and the smallest margin on the way."""
    out: list[int] = []
    margin = float("inf")
    feed, cache = torch.tensor([ids]), None
    while len(out) < STEPS and (not out or out[-1] != stop):
        step = model(feed, past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        best = step.logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        out.append(int(best.indices[0]))
        feed = torch.tensor([[out[-1]]])
    return out, margin


if __name__ == "__main__":
    main()
