"""Where reference scripts find models, packages and samples, and how they write their JSON.

The files here are made by *other* implementations than ours (transformers, ctranslate2, onnxruntime, plain PyTorch), so
that our tests compare two independent answers. To make them again, in a throw-away environment with the packages of
`requirements.txt`, after `services/worker/setup/setup.sh`:

    python tests/reference/make_embeddings.py
"""

from __future__ import annotations

import json
import os
import tomllib
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETUP = HERE.parent.parent / "services/worker/setup"
CACHE = Path(os.environ.get("SENSORIUM_CACHE", Path.home() / ".cache/sensorium"))
MODELS = Path(os.environ.get("SENSORIUM_REPOSITORY", CACHE / "models"))
SAMPLES = Path(os.environ.get("SENSORIUM_SAMPLES", CACHE / "samples"))


def version(model: str) -> Path:
    """The folder of a model's first version."""
    return MODELS / model / "1"


def unpack(package: str, into: Path) -> Path:
    """Unpacks a locked wheel, as its publisher made it, and returns `into`."""
    entries = tomllib.loads((SETUP / "pack.lock").read_text())["package"]
    (entry,) = [entry for entry in entries if entry["name"] == package]
    folder = f"{entry['name']}-{entry['version']}-{entry['sha256'][:12]}"
    with zipfile.ZipFile(CACHE / "downloads" / folder / entry["file"]) as wheel:
        wheel.extractall(into)
    return into


def write(name: str, made_by: str, value: dict[str, Any]) -> None:
    """Writes `<name>.json`, numbers with as many digits as f32 needs."""
    path = HERE / f"{name}.json"
    path.write_text(json.dumps({"made_by": made_by, **value}, indent=1, ensure_ascii=False) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


def rounded(values: Any, digits: int = 6) -> list[Any]:
    """Nested lists of floats, short enough to read."""
    if isinstance(values, (list, tuple)) or hasattr(values, "tolist"):
        items = values.tolist() if hasattr(values, "tolist") else values
        return [rounded(item, digits) if isinstance(item, list) else round(item, digits) for item in items]
    raise TypeError(f"expected a list or an array, got {type(values)}")
