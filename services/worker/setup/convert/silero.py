"""silero-vad, 16 kHz, from the package's ONNX: fifteen tensors under shorter names, otherwise unchanged.

The package also has a `silero_vad_16k.safetensors` with these very names, but other weights: its answers part from
those of the package's ONNX and TorchScript models (which agree to 1e-5) by up to 0.28. Those two are what the package
runs, so the ONNX is what is taken.

A call looks at 64 samples of context (the end of the chunk before, zeros at first) and 512 new ones, 32 ms:

    x       [B, 576]        context and chunk, padded on the right by reflection to 640
    stft    conv1d(x, stft_conv.weight [258, 1, 256], stride 128), magnitude of rows 0..129 and 129..258 -> [B, 129, 4]
    conv1…4 kernel 3, padding 1, strides 1, 2, 2, 1, each with ReLU -> [B, 128, 1]
    lstm    one LSTMCell(128, 128), PyTorch's gate order i, f, g, o; state carried from chunk to chunk
    out     sigmoid(conv1d(relu(h), final_conv)) -> [B, 1], the probability of speech in these 32 ms
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from . import weights

CONFIG: dict[str, Any] = {
    "model_type": "silero-vad",
    "sampling_rate": 16000,
    "chunk_samples": 512,
    "context_samples": 64,
    "stft": {"window": 256, "stride": 128, "bins": 129, "pad_right_reflect": 64},
    "conv_strides": [1, 2, 2, 1],
    "hidden_size": 128,
    # Defaults of the package's get_speech_timestamps().
    "threshold": 0.5,
    "negative_threshold": 0.35,
    "min_speech_ms": 250,
    "min_silence_ms": 100,
    "speech_pad_ms": 30,
}

# Name in the graph: our name and shape.
TENSORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "stft.forward_basis_buffer": ("stft_conv.weight", (258, 1, 256)),
    "encoder.0.reparam_conv.weight": ("conv1.weight", (128, 129, 3)),
    "encoder.0.reparam_conv.bias": ("conv1.bias", (128,)),
    "encoder.1.reparam_conv.weight": ("conv2.weight", (64, 128, 3)),
    "encoder.1.reparam_conv.bias": ("conv2.bias", (64,)),
    "encoder.2.reparam_conv.weight": ("conv3.weight", (64, 64, 3)),
    "encoder.2.reparam_conv.bias": ("conv3.bias", (64,)),
    "encoder.3.reparam_conv.weight": ("conv4.weight", (128, 64, 3)),
    "encoder.3.reparam_conv.bias": ("conv4.bias", (128,)),
    "decoder.rnn.weight_ih": ("lstm_cell.weight_ih", (512, 128)),
    "decoder.rnn.weight_hh": ("lstm_cell.weight_hh", (512, 128)),
    "decoder.rnn.bias_ih": ("lstm_cell.bias_ih", (512,)),
    "decoder.rnn.bias_hh": ("lstm_cell.bias_hh", (512,)),
    "decoder.decoder.2.weight": ("final_conv.weight", (1, 128, 1)),
    "decoder.decoder.2.bias": ("final_conv.bias", (1,)),
}


def convert(source: Path, directory: Path) -> None:
    """`source` is the package's `silero_vad_16k_op15.onnx`."""
    graph = onnx.load(str(source)).graph
    tensors = weights.Source({item.name: numpy_helper.to_array(item) for item in graph.initializer})
    out = {ours: tensors.take(f"model.{theirs}", shape) for theirs, (ours, shape) in TENSORS.items()}
    tensors.finish()
    conversion = {
        "format": "ONNX",
        "source_sha256": weights.sha256(source),
        "source_tensors": tensors.count,
    }
    weights.write("silero-vad", directory, out, CONFIG, conversion)
