"""Whisper's greedy tokens, timestamps included: transformers in f32 on our converted weights.

Needs: torch, transformers, numpy. The same clips as transcripts.json, by the rules of OpenAI's decoder (suppressed
tokens, timestamps in pairs and never backwards, the first at most one second in). faster-whisper differs from these in
how it pads: it fills a short clip up with zeros of the normalised log-mel, where OpenAI and transformers fill up with
silence before the transform. That moves a timestamp or a comma now and then, so each is compared with its like.
"""

from __future__ import annotations

import json
import wave

import numpy as np
import places
import tokenizers
import torch
import transformers


def main() -> None:
    """Writes whisper_tokens.json."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    clips = sorted((places.SAMPLES / "speech").glob("*.wav"))
    models: dict[str, list[dict[str, object]]] = {}
    for name in ("whisper-base", "whisper-tiny-en"):
        folder = places.version(name)
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        model.generation_config = generation(config)
        models[name] = []
        for path in clips:
            with wave.open(str(path)) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
            mel = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
            tokens = transcribe(model, mel, config)
            text = tokenizer.decode([token for token in tokens if token < config["eot"]])
            models[name].append({"file": path.name, "tokens": tokens, "text": text.strip()})
            print(name, tokens[0], tokens[-1], text)
    places.write("whisper_tokens", f"transformers {transformers.__version__}, f32, greedy", {"models": models})


def generation(config: dict[str, object]) -> transformers.GenerationConfig:
    """What OpenAI's decoder knows, in transformers' words."""
    multilingual: dict[str, object] = {}
    if config["multilingual"]:
        languages = {f"<|{name}|>": number for name, number in config["languages"].items()}
        multilingual = {
            "lang_to_id": languages,
            "task_to_id": {"transcribe": config["transcribe"], "translate": config["translate"]},
        }
    return transformers.GenerationConfig(
        decoder_start_token_id=config["sot"],
        bos_token_id=config["eot"],
        eos_token_id=config["eot"],
        pad_token_id=config["eot"],
        no_timestamps_token_id=config["no_timestamps"],
        prev_sot_token_id=config["sot_prev"],
        suppress_tokens=config["suppress_tokens"],
        begin_suppress_tokens=config["begin_suppress_tokens"],
        is_multilingual=config["multilingual"],
        max_initial_timestamp_index=50,
        max_length=config["max_target_positions"],
        return_timestamps=True,
        **multilingual,
    )


@torch.inference_mode()
def transcribe(
    model: transformers.WhisperForConditionalGeneration, mel: torch.Tensor, config: dict[str, object]
) -> list[int]:
    """The tokens after the prompt, without the end token."""
    choice = {"language": "en", "task": "transcribe"} if config["multilingual"] else {}
    out = model.generate(mel, do_sample=False, num_beams=1, return_timestamps=True, **choice)[0].tolist()
    begin = next(i for i, token in enumerate(out) if token >= config["timestamp_begin"])
    return [token for token in out[begin:] if token != config["eot"]]


if __name__ == "__main__":
    main()
