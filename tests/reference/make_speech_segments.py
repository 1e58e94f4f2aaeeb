"""Speech segments and per-chunk probabilities: the silero-vad package's own code with its ONNX graph.

Needs: silero-vad, torch, onnxruntime, numpy. The input is made of the sample clips so that
there is silence to find: one second of nothing, clip 1, two seconds of nothing, clip 2, one second of nothing.
"""

from __future__ import annotations

import wave

import numpy as np
import places
import silero_vad
import torch

RATE = 16000
CHUNK = 512


def main() -> None:
    """Writes speech_segments.json."""
    paths = sorted((places.SAMPLES / "speech").glob("*.wav"))[:2]
    clips = [read(path) for path in paths]
    silence = np.zeros(RATE, np.float32)
    audio = torch.from_numpy(np.concatenate([silence, clips[0], silence, silence, clips[1], silence]))
    model = silero_vad.load_silero_vad(onnx=True)
    segments = silero_vad.get_speech_timestamps(audio, model, sampling_rate=RATE)
    model.reset_states()
    whole = len(audio) // CHUNK * CHUNK
    probabilities = [model(audio[i : i + CHUNK], RATE).item() for i in range(0, whole, CHUNK)]
    value = {
        "silence_samples": [RATE, 2 * RATE, RATE],
        "clips": [path.name for path in paths],
        "samples": len(audio),
        "segments": segments,
        "probabilities": places.rounded(probabilities, 5),
    }
    print(segments)
    places.write("speech_segments", "silero-vad 6.2.3, ONNX, defaults of get_speech_timestamps", value)


def read(path: object) -> np.ndarray:
    """Samples in -1..1."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


if __name__ == "__main__":
    main()
