"""EfficientNet-Lite0: a PyTorch state dict, batch normalisation folded into the convolutions.

Tensor names (all convolutions have a bias, which is what is left of their batch normalisation):

    stem.conv.{weight,bias}                      3x3, stride 2, ReLU6                    [32, 3, 3, 3]
    blocks.{stage}.{i}.expand.{weight,bias}      1x1, ReLU6; absent where expand = 1     [c*expand, c, 1, 1]
    blocks.{stage}.{i}.depthwise.{weight,bias}   kxk, stride, groups = channels, ReLU6   [c*expand, 1, k, k]
    blocks.{stage}.{i}.project.{weight,bias}     1x1, linear                             [out, c*expand, 1, 1]
    head.conv.{weight,bias}                      1x1, ReLU6                              [1280, 320, 1, 1]
    classifier.{weight,bias}                                                             [1000, 1280]

The input of a block is added to its output where stride is 1 and the channels are equal. The 1280-d feature is the mean
over the head's 7x7. `config.json` lists every block, in order.

The weights come from TensorFlow, and so does the padding "SAME": with total = max((ceil(n/s)-1)*s + k - n, 0), the
smaller half goes to the top and left. At stride 2 that is 0/1 for k = 3 and 1/2 for k = 5: not PyTorch's symmetric
padding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import torch_legacy, weights

# TensorFlow's value for EfficientNet; PyTorch's default would be 1e-5.
EPSILON = 1e-3


@dataclass(frozen=True)
class Block:
    """One inverted residual block."""

    name: str
    kernel: int
    stride: int
    expand: int
    in_channels: int
    out_channels: int
    residual: bool


# Stage: repeats, kernel, stride of the first block, expansion, channels out (Tan & Le, 2019, table 1).
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def layout() -> list[Block]:
    """All blocks, in order."""
    blocks: list[Block] = []
    channels = 32
    for stage, (repeats, kernel, first_stride, expand, out) in enumerate(STAGES):
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            residual = stride == 1 and channels == out
            blocks.append(Block(f"blocks.{stage}.{i}", kernel, stride, expand, channels, out, residual))
            channels = out
    return blocks


def convert(source: Path, labels: list[str], directory: Path) -> None:
    """`source` is the `.pth`; `labels` the thousand class names in ImageNet's order."""
    tensors = weights.Source(torch_legacy.read(source))
    out: dict[str, np.ndarray] = {}

    def fold(name: str, conv: str, norm: str) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = _fold(tensors, conv, norm)

    fold("stem.conv", "_conv_stem", "_bn0")
    for i, block in enumerate(layout()):
        old = f"_blocks.{i}"
        if block.expand != 1:
            fold(f"{block.name}.expand", f"{old}._expand_conv", f"{old}._bn0")
        fold(f"{block.name}.depthwise", f"{old}._depthwise_conv", f"{old}._bn1")
        fold(f"{block.name}.project", f"{old}._project_conv", f"{old}._bn2")
        _check(block, out)
    fold("head.conv", "_conv_head", "_bn1")
    out["classifier.weight"] = tensors.take("_fc.weight", (1000, 1280))
    out["classifier.bias"] = tensors.take("_fc.bias", (1000,))
    tensors.finish()

    if len(labels) != 1000:
        raise weights.Error(f"{len(labels)} labels for 1000 classes")
    (directory / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    config: dict[str, Any] = {
        "model_type": "efficientnet-lite",
        "num_classes": 1000,
        "hidden_size": 1280,
        "image_size": 224,
        "activation": "relu6",
        "padding": "same-tensorflow",
        "stem": {"kernel": 3, "stride": 2, "out_channels": 32},
        "blocks": [asdict(block) for block in layout()],
        "head": {"out_channels": 1280},
    }
    conversion = {
        "format": "PyTorch legacy state dict",
        "source_sha256": weights.sha256(source),
        "source_tensors": tensors.count,
        "batch_norm": f"folded into the convolutions in float64, epsilon {EPSILON}",
    }
    weights.write("efficientnet-lite0", directory, out, config, conversion)


def _fold(tensors: weights.Source, conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a convolution that does its batch normalisation too.

    norm(conv(x)) = gamma * (conv(x) - mean) / sqrt(variance + epsilon) + beta, all per output channel.
    """
    weight = tensors.take(f"{conv}.weight").astype(np.float64)
    channels = (weight.shape[0],)
    gamma, beta, mean, variance = (
        tensors.take(f"{norm}.{part}", channels).astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    tensors.take(f"{norm}.num_batches_tracked", ())
    scale = gamma / np.sqrt(variance + EPSILON)
    return (weight * scale[:, None, None, None]).astype(np.float32), (beta - mean * scale).astype(np.float32)


def _check(block: Block, out: dict[str, np.ndarray]) -> None:
    wide = block.in_channels * block.expand
    shapes = {
        "depthwise": (wide, 1, block.kernel, block.kernel),
        "project": (block.out_channels, wide, 1, 1),
    }
    if block.expand != 1:
        shapes["expand"] = (wide, block.in_channels, 1, 1)
    for part, shape in shapes.items():
        found = out[f"{block.name}.{part}.weight"].shape
        if found != shape:
            raise weights.Error(f"{block.name}.{part}.weight has shape {found}, expected {shape}")
