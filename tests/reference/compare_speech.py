"""Word error rates of a running server and of faster-whisper, on the samples as they are, shifted, cut and in noise.

Needs: faster-whisper, tritonclient[grpc], and a server:

    make run &
    python tests/reference/compare_speech.py --server localhost:8001

A shift cuts a little from the start or puts silence before it: what is said stays the same. Where a word is cut, too,
the reference is what the model in float32 hears with a beam of 5 in the cut clip put back into silence; such clips
are left out here. Noise is white, at so many decibels below the speech.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import wave
from pathlib import Path

import faster_whisper
import numpy as np
import places
import tritonclient.grpc as triton
from make_transcripts import MODELS, distance, original, words

RATE = 16_000


def main() -> None:
    """Prints a table, and the clips where the two part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="host:port of a server; without, faster-whisper alone")
    parser.add_argument("--model", default="whisper-base", choices=MODELS)
    parser.add_argument("--few", action="store_true", help="forty clips and three settings, those of docs/MEDIA.md")
    parser.add_argument("--json", type=Path, help="where to write every transcript")
    arguments = parser.parse_args()
    clips = list(variants(arguments.few))
    heard = {}
    for compute in ["float32", "int8"]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = str(original(MODELS[arguments.model], Path(scratch)))
            model = faster_whisper.WhisperModel(folder, device="cpu", compute_type=compute, cpu_threads=2)
        for beam in [5] if arguments.few and compute == "int8" else [1, 5]:
            heard[f"faster-whisper {compute}, beam {beam}"] = [hear(model, clip, beam) for _, _, clip, _ in clips]
    if arguments.server:
        client = triton.InferenceServerClient(arguments.server)
        heard["sensorium"] = [ask(client, arguments.model, clip) for _, _, clip, _ in clips]
    report(clips, heard)
    if arguments.json:
        told = [
            {"clip": name, "kind": kind, "reference": reference, **{who: texts[n] for who, texts in heard.items()}}
            for n, (name, kind, _, reference) in enumerate(clips)
        ]
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


def variants(few: bool):
    """Name, kind, samples and reference of every clip, or of a few of them."""
    lines = (places.SAMPLES / "speech/transcripts.tsv").read_text().splitlines()
    noise = np.random.default_rng(1).standard_normal(60 * RATE).astype(np.float32)
    whole, said = [], []
    for line in lines:
        file, reference = line.split("\t")
        name = file[-8:-4]
        samples = read(places.SAMPLES / "speech" / file)
        whole.append(samples)
        said.append(reference)
        yield name, "as it is", samples, reference
        for hundredths in [3, 13, 50] if few else [3, 7, 13, 21, 50, 77, 130, 250]:
            silence = np.zeros(hundredths * RATE // 100, np.float32)
            yield f"{name}+{hundredths}", "silence before", np.concatenate([silence, samples]), reference
        for thousandths in [40, 80] if few else [20, 40, 60, 80, 100, 120]:
            yield f"{name}-{thousandths}", "start cut", samples[thousandths * RATE // 1000 :], reference
        for thousandths in [100] if few else [50, 100, 150]:
            yield f"{name}~{thousandths}", "end cut", samples[: -thousandths * RATE // 1000], reference
        power = np.sqrt(np.mean(samples**2))
        for decibels in [10] if few else [30, 20, 15, 10, 5]:
            noisy = samples + noise[: len(samples)] * power * 10 ** (-decibels / 20)
            yield f"{name}/{decibels}", f"noise {decibels} dB", noisy.astype(np.float32), reference
    for n in range(0 if few else len(whole)):
        order = [(n + k) % len(whole) for k in range(len(whole))]
        for gap in [0, 4000, 16_000]:
            pause = np.zeros(gap, np.float32)
            samples = np.concatenate([part for k in order for part in (whole[k], pause)])
            yield f"all from {n}, {gap}", "one after the other", samples, " ".join(said[k] for k in order)


def read(path: Path) -> np.ndarray:
    """Samples of a mono clip of 16 bits at 16 kHz."""
    with wave.open(str(path)) as clip:
        assert (clip.getframerate(), clip.getnchannels(), clip.getsampwidth()) == (RATE, 1, 2), path
        return np.frombuffer(clip.readframes(clip.getnframes()), np.int16).astype(np.float32) / 32768


def as_wav(samples: np.ndarray) -> bytes:
    """A clip of 16 bits at 16 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(RATE)
        clip.writeframes((np.clip(samples, -1, 1) * 32767).round().astype(np.int16).tobytes())
    return file.getvalue()


def hear(model: faster_whisper.WhisperModel, samples: np.ndarray, beam: int) -> str:
    """What faster-whisper hears, with the settings of its authors but for the beam."""
    segments, _ = model.transcribe(io.BytesIO(as_wav(samples)), language="en", beam_size=beam)
    return "".join(segment.text for segment in segments).strip()


def ask(client: triton.InferenceServerClient, model: str, samples: np.ndarray) -> str:
    """What the server hears."""
    audio = triton.InferInput("audio", [1], "BYTES")
    audio.set_data_from_numpy(np.array([as_wav(samples)], dtype=object))
    parameters = {"language": "en"} if model == "whisper-base" else None
    answer = client.infer(model, [audio], parameters=parameters)
    return answer.as_numpy("transcript")[0].decode()


def report(clips: list, heard: dict[str, list[str]]) -> None:
    """Word error rates by kind, then what differs."""
    kinds = list(dict.fromkeys(kind for _, kind, _, _ in clips))
    print(f"{'kind':24}{'words':>7}" + "".join(f"{who:>32}" for who in heard))
    for kind in [*kinds, "all"]:
        rows = [n for n, clip in enumerate(clips) if kind in (clip[1], "all")]
        total = sum(len(words(clips[n][3])) for n in rows)
        rates = [sum(distance(words(clips[n][3]), words(texts[n])) for n in rows) / total for texts in heard.values()]
        print(f"{kind:24}{total:7}" + "".join(f"{100 * rate:31.2f}%" for rate in rates))
    if "sensorium" not in heard:
        return
    for n, (name, _, _, reference) in enumerate(clips):
        other = heard["faster-whisper float32, beam 1"][n]
        ours = heard["sensorium"][n]
        if words(other) != words(ours):
            count = [distance(words(reference), words(text)) for text in (ours, other)]
            print(f"{name}: sensorium {count[0]}: {ours}\n{'':{len(name)}}  faster-whisper {count[1]}: {other}")


if __name__ == "__main__":
    main()
