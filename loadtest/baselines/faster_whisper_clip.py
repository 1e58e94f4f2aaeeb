"""Seconds that faster-whisper takes for a clip: faster_whisper_clip.py MODEL_DIR CLIP [--runs N] [--threads N]

float32, greedy, English, as many threads as cores. Loading the model is not in the time; decoding the file is, as it
is on our side. Prints one line of JSON.
"""

import argparse
import json
import os
import statistics
import time

from faster_whisper import WhisperModel, __version__

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("clip")
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--threads", type=int, default=os.cpu_count())
args = parser.parse_args()

model = WhisperModel(
    args.model, device="cpu", compute_type="float32", cpu_threads=args.threads, local_files_only=True
)


def transcribe():
    begin = time.perf_counter()
    segments, _ = model.transcribe(args.clip, beam_size=1, language="en")
    # segments are made as they are read
    text = "".join(segment.text for segment in segments)
    return time.perf_counter() - begin, text


transcribe()
runs = [transcribe() for _ in range(args.runs)]
print(
    json.dumps(
        {
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "runs": [round(seconds, 4) for seconds, _ in runs],
            "text": runs[0][1].strip(),
            "threads": args.threads,
            "version": __version__,
        }
    )
)
