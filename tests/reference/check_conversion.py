"""Runs converted weights by the networks that the converters' docstrings describe, against the originals.

Needs: torch, safetensors, numpy, tokenizers, and the JSON files of this folder. Prints the largest differences; fails
where one is larger than f32 explains. It is what the model cards quote, and a second reader of those docstrings.
"""

from __future__ import annotations

import json
from typing import Any

import make_images
import make_speech_segments
import numpy as np
import places
import tokenizers
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

TOLERANCE = 2e-5


def load(model: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and config."""
    folder = places.version(model)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def reference(name: str) -> dict[str, Any]:
    """A JSON file of this folder."""
    return json.loads((places.HERE / f"{name}.json").read_text())


def efficientnet(x: torch.Tensor) -> torch.Tensor:
    """Probabilities of `[1, 3, 224, 224]`."""
    w, config = load("efficientnet-lite0")

    def conv(x: torch.Tensor, name: str, kernel: int = 1, stride: int = 1, groups: int = 1) -> torch.Tensor:
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        first, last = total // 2, total - total // 2
        x = F.pad(x, (first, last, first, last))
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, groups=groups)

    x = F.relu6(conv(x, "stem.conv", 3, 2))
    for block in config["blocks"]:
        y, name = x, block["name"]
        if block["expand"] != 1:
            y = F.relu6(conv(y, f"{name}.expand"))
        y = F.relu6(conv(y, f"{name}.depthwise", block["kernel"], block["stride"], y.shape[1]))
        y = conv(y, f"{name}.project")
        x = x + y if block["residual"] else y
    feature = F.relu6(conv(x, "head.conv")).mean((2, 3))
    return F.linear(feature, w["classifier.weight"], w["classifier.bias"]).softmax(-1)[0]


def open_nsfw(x: torch.Tensor) -> float:
    """Probability of the second class for `[1, 3, 224, 224]`."""
    w, config = load("open-nsfw")

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        facts = config["convolutions"][name]
        top, left, bottom, right = facts["pads"]
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=facts["stride"])

    x = F.max_pool2d(F.pad(conv(x, "conv_1").relu(), (0, 1, 0, 1)), 3, 2)
    for stage, blocks in enumerate(config["blocks"]):
        for block in range(blocks):
            name = f"stage{stage}.block{block}"
            shortcut = conv(x, f"{name}.conv_proj_shortcut") if block == 0 else x
            y = conv(x, f"{name}.conv_branch2a").relu()
            y = conv(y, f"{name}.conv_branch2b").relu()
            x = (conv(y, f"{name}.conv_branch2c") + shortcut).relu()
    return F.linear(x.mean((2, 3)), w["fc_nsfw.weight"], w["fc_nsfw.bias"]).softmax(-1)[0, 1].item()


def silero(audio: torch.Tensor) -> list[float]:
    """Probability of speech for each 32 ms."""
    w, _ = load("silero-vad")
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({name.removeprefix("lstm_cell."): w[name] for name in w if name.startswith("lstm_cell.")})
    state = (torch.zeros(1, 128), torch.zeros(1, 128))
    padded = F.pad(audio, (64, 0))
    out = []
    for start in range(0, len(audio) // 512 * 512, 512):
        x = F.pad(padded[None, None, start : start + 576], (0, 64), mode="reflect")
        x = F.conv1d(x, w["stft_conv.weight"], stride=128)
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for i, stride in enumerate([1, 2, 2, 1], 1):
            x = F.conv1d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"], stride=stride, padding=1).relu()
        state = cell(x[:, :, 0], state)
        y = F.conv1d(state[0][:, :, None].relu(), w["final_conv.weight"], w["final_conv.bias"]).sigmoid()
        out.append(y.item())
    return out


def images() -> tuple[float, float]:
    """Largest differences of EfficientNet's best five and of the guard."""
    labels, guard = 0.0, 0.0
    for item in reference("images")["items"]:
        image = Image.open(places.SAMPLES / "images" / item["file"]).convert("RGB")
        x, y = (
            torch.from_numpy(make_images.preprocess(image, name)).permute(2, 0, 1)[None]
            for name in ("efficientnet-lite0", "open-nsfw")
        )
        best = efficientnet(x).topk(5).values - torch.tensor(item["probabilities"])
        labels = max(labels, best.abs().max().item())
        guard = max(guard, abs(open_nsfw(y) - item["nsfw_probability"]))
    return labels, guard


def speech() -> float:
    """Largest difference of a probability of speech."""
    facts = reference("speech_segments")
    clips = [make_speech_segments.read(places.SAMPLES / "speech" / name) for name in facts["clips"]]
    gaps = [np.zeros(count, np.float32) for count in facts["silence_samples"]]
    audio = np.concatenate([gaps[0], clips[0], gaps[1], clips[1], gaps[2]])
    found = silero(torch.from_numpy(audio))
    return float(np.abs(np.array(found) - np.array(facts["probabilities"])).max())


def wrong_tokens() -> list[tuple[str, str]]:
    """Texts that a converted tokenizer splits otherwise than its publisher's."""
    items = reference("tokens")["items"]
    wrong = []
    for model in ("minilm", "smollm2-135m"):
        tokenizer = tokenizers.Tokenizer.from_file(str(places.version(model) / "tokenizer.json"))
        wrong += [(model, item["text"]) for item in items if tokenizer.encode(item["text"]).ids != item[model]]
    return wrong


@torch.inference_mode()
def main() -> None:
    """Prints and judges."""
    labels, guard = images()
    found = {"efficientnet-lite0": labels, "open-nsfw": guard, "silero-vad": speech()}
    for name, difference in found.items():
        print(f"{name}: largest difference of a probability {difference:.1e}")
    wrong = wrong_tokens()
    print(f"tokenizers: {len(wrong)} texts differ {wrong or ''}")
    if wrong or max(found.values()) > TOLERANCE:
        raise SystemExit("the conversion is not faithful")


if __name__ == "__main__":
    main()
