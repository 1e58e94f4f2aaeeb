"""Whisper in parts: log-mel, encoder output and first logits, by transformers on our converted weights.

Needs: torch, transformers, numpy. The first clip of the samples. Cells are sampled by a fixed stride, so that the file
stays small and an error of layout still shows.
"""

from __future__ import annotations

import json
import wave

import numpy as np
import places
import torch
import transformers

CELLS = 50


def main() -> None:
    """Writes whisper_parts.json."""
    path = sorted((places.SAMPLES / "speech").glob("*.wav"))[0]
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    mel = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
    value = {
        "clip": path.name,
        "samples": len(samples),
        "log_mel": summary(mel[0]),
        "models": {name: parts(name, mel) for name in ("whisper-base", "whisper-tiny-en")},
    }
    made_by = f"transformers {transformers.__version__}, WhisperFeatureExtractor and WhisperForConditionalGeneration, f32"
    places.write("whisper_parts", made_by, value)


@torch.inference_mode()
def parts(name: str, mel: torch.Tensor) -> dict[str, object]:
    """Encoder output, and the logits after the prompt that asks for an English transcript with timestamps."""
    folder = places.version(name)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    config = json.loads((folder / "config.json").read_text())
    prompt = [config["sot"]]
    if config["multilingual"]:
        prompt += [config["languages"]["en"], config["transcribe"]]
    encoded = model.model.encoder(mel).last_hidden_state
    logits = model(encoder_outputs=(encoded,), decoder_input_ids=torch.tensor([prompt])).logits[0, -1]
    best = logits.topk(5)
    return {
        "encoder": summary(encoded[0]),
        "prompt": prompt,
        "logits": summary(logits[None]),
        "best": {"tokens": best.indices.tolist(), "logits": places.rounded(best.values, 4)},
    }


def summary(matrix: torch.Tensor) -> dict[str, object]:
    """Mean, deviation and sampled cells of a matrix."""
    flat = matrix.flatten()
    at = [int(i) for i in np.linspace(0, flat.numel() - 1, CELLS)]
    return {
        "shape": list(matrix.shape),
        "mean": round(flat.mean().item(), 6),
        "std": round(flat.std(correction=0).item(), 6),
        "cells": [[i, round(flat[i].item(), 5)] for i in at],
    }


if __name__ == "__main__":
    main()
