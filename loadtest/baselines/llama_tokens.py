"""Tokens per second of llama.cpp: llama_tokens.py MODEL.gguf [--runs N] [--threads N] [--tokens N]

Greedy, one sequence; the prompt and the loading are not in the time. Prints one line of JSON.
"""

import argparse
import json
import statistics
import time

import llama_cpp

PROMPT = "Once upon a time, in a small village by the sea, there lived"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--tokens", type=int, default=64)
args = parser.parse_args()

llama = llama_cpp.Llama(
    args.model, n_ctx=512, n_threads=args.threads, n_threads_batch=args.threads, verbose=False
)
prompt = llama.tokenize(PROMPT.encode())


def generate():
    llama.reset()
    llama.eval(prompt)
    token = llama.sample(temp=0.0)
    begin = time.perf_counter()
    # an end-of-text token is decoded on, so that every run writes the same number
    for _ in range(args.tokens):
        llama.eval([token])
        token = llama.sample(temp=0.0)
    return args.tokens / (time.perf_counter() - begin)


generate()
runs = [generate() for _ in range(args.runs)]
print(
    json.dumps(
        {
            "tokens_per_s": statistics.median(runs),
            "runs": [round(rate, 2) for rate in runs],
            "threads": args.threads,
            "version": llama_cpp.__version__,
        }
    )
)
