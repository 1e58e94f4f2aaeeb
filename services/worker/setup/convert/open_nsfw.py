"""Yahoo's open_nsfw from ONNX: a thin ResNet-50, batch normalisation already folded in by the exporter.

Tensor names (weights are OIHW and every convolution has a bias):

    conv_1.{weight,bias}                                        7x7, stride 2, ReLU, then the max pool
    stage{s}.block{b}.conv_branch2{a,b,c}.{weight,bias}         1x1, 3x3, 1x1; ReLU after a and b
    stage{s}.block0.conv_proj_shortcut.{weight,bias}            1x1 on the shortcut of a stage's first block
    fc_nsfw.{weight,bias}                                       [2, 1024]; softmax over (safe, not safe)

ReLU after the sum of branch and shortcut. The stride of a stage's first block is on `conv_branch2a` and on the shortcut
(Caffe's ResNet), not on the 3x3.

Padding: `conv_1` and the 3x3s pad evenly. The max pool (3x3, stride 2) pads the *bottom and right* by one only
(Caffe's ceil mode): PyTorch needs `pad(x, (0, 1, 0, 1))` first; x is behind a ReLU, so zeros do as well as -inf.

The graph takes NHWC and transposes first; we leave the transposition away and take NCHW.
`config.json` carries strides and pads as the graph has them, read and checked node by node.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from . import weights

BLOCKS = [3, 4, 6, 3]

# Constants of reshapes, no weights.
SHAPE_CONSTANTS = ("new_shape__650", "const_fold_opt__652")


def convert(source: Path, directory: Path) -> None:
    """`source` is the package's `open-nsfw.onnx`."""
    graph = onnx.load(str(source)).graph
    tensors = weights.Source({item.name: numpy_helper.to_array(item) for item in graph.initializer})
    out: dict[str, np.ndarray] = {}
    convolutions: dict[str, dict[str, Any]] = {}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        name = _name(node.output[0])
        out[f"{name}.weight"], out[f"{name}.bias"] = (tensors.take(key) for key in node.input[1:])
        convolutions[name] = _geometry(node)
    _check_layout(convolutions)
    out["fc_nsfw.weight"] = tensors.take("fc_nsfw/MatMul/ReadVariableOp:0", (1024, 2)).T
    out["fc_nsfw.bias"] = tensors.take("fc_nsfw/BiasAdd/ReadVariableOp:0", (2,))
    for name in SHAPE_CONSTANTS:
        tensors.take(name)
    tensors.finish()

    pool = _geometry(next(node for node in graph.node if node.op_type == "MaxPool"))
    if pool != {"kernel": 3, "stride": 2, "pads": [0, 0, 1, 1]}:
        raise weights.Error(f"unexpected max pool {pool}")
    config = {
        "model_type": "open-nsfw",
        "image_size": 224,
        "blocks": BLOCKS,
        "classes": ["safe", "nsfw"],
        "pads_order": "top, left, bottom, right",
        "max_pool": pool,
        "convolutions": convolutions,
    }
    conversion = {
        "format": "ONNX",
        "source_sha256": weights.sha256(source),
        "source_tensors": tensors.count,
        "left_out": {name: "shape of a reshape" for name in SHAPE_CONSTANTS},
    }
    weights.write("open-nsfw", directory, out, config, conversion)


def _name(output: str) -> str:
    """Our name of the convolution whose folded normalisation makes `output`."""
    if output.startswith("bn_1/"):
        return "conv_1"
    found = re.match(r"bn_stage(\d)_block(\d)_(proj_shortcut|branch2[abc])/", output)
    if not found:
        raise weights.Error(f"unknown convolution {output}")
    stage, block, part = found.groups()
    return f"stage{stage}.block{block}.conv_{part}"


def _geometry(node: onnx.NodeProto) -> dict[str, Any]:
    facts = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if facts.get("auto_pad", b"NOTSET") != b"NOTSET" or set(facts.get("dilations", [1])) != {1}:
        raise weights.Error(f"{node.name} pads or dilates in a way that the engine does not")
    kernel, stride = facts["kernel_shape"], facts["strides"]
    if kernel[0] != kernel[1] or stride[0] != stride[1]:
        raise weights.Error(f"{node.name} is not square")
    return {"kernel": kernel[0], "stride": stride[0], "pads": list(facts.get("pads", [0, 0, 0, 0]))}


def _check_layout(found: dict[str, dict[str, Any]]) -> None:
    """Compares the graph with the layout that the docstring promises."""
    expected = {"conv_1": (7, 2, 3)}
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            name = f"stage{stage}.block{block}"
            if block == 0:
                expected[f"{name}.conv_proj_shortcut"] = (1, stride, 0)
            expected[f"{name}.conv_branch2a"] = (1, stride, 0)
            expected[f"{name}.conv_branch2b"] = (3, 1, 1)
            expected[f"{name}.conv_branch2c"] = (1, 1, 0)
    wanted = {
        name: {"kernel": kernel, "stride": stride, "pads": [pad] * 4}
        for name, (kernel, stride, pad) in expected.items()
    }
    if found != wanted:
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise weights.Error(f"convolutions that are not where they should be: {wrong}")
