"""Takes libtorch out of PyTorch's wheels: `libtorch.py cpu|cuda <downloads> <directory>`.

PyPI has no wheel of torch without CUDA. For `cpu` the half of it that needs no GPU is taken: headers,
`libtorch_cpu.so` and what that is linked with. For `cuda` the wheel is installed whole, with the versions of CUDA's
libraries that it pins itself, and all libraries are linked into one folder, where they find each other by `$ORIGIN`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fetch
from convert import lock

SETUP = Path(__file__).parent

# Package, and the libraries taken from it for `cpu`.
LIBRARIES = {
    "torch": ("libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libshm.so"),
    "nvidia-cuda-runtime": ("libcudart.so.13",),
    "nvidia-cuda-cupti": ("libcupti.so.13",),
}


class Error(Exception):
    """A wheel does not hold what it should."""


def cpu(packages: dict[str, lock.Package], downloads: Path, directory: Path) -> None:
    """Headers and CPU libraries."""
    for name, wanted in LIBRARIES.items():
        missing = set(wanted)
        with zipfile.ZipFile(packages[name].location(downloads)) as wheel:
            for entry in wheel.infolist():
                file = Path(entry.filename)
                if file.parent.name == "lib" and file.name in missing:
                    _extract(wheel, entry, directory / "lib" / file.name)
                    missing.remove(file.name)
                elif name == "torch" and entry.filename.startswith("torch/include/") and not entry.is_dir():
                    _extract(wheel, entry, directory / file.relative_to("torch"))
        if missing:
            raise Error(f"{packages[name].file} has no {sorted(missing)}")
    # The wheel's own libtorch.so does nothing but ask for libtorch_cuda.so too.
    (directory / "lib/libtorch.so").symlink_to("libtorch_cpu.so")


def cuda(packages: dict[str, lock.Package], downloads: Path, directory: Path) -> None:
    """Everything, as pip installs it."""
    site = directory / "site"
    wheel = packages["torch"].location(downloads)
    subprocess.run([*fetch.PIP, "install", *fetch.TAGS, "--target", str(site), str(wheel)], check=True)
    (directory / "include").symlink_to("site/torch/include")
    lib = directory / "lib"
    lib.mkdir()
    # PyTorch's own first: where a name is there twice, its copy is the one that it was linked with.
    for found in [*site.glob("torch/lib/*.so*"), *sorted(site.glob("nvidia/**/lib/*.so*"))]:
        link = lib / found.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(found, lib))
    if not (lib / "libtorch_cuda.so").exists():
        raise Error("the wheel of torch has no libtorch_cuda.so")


def _extract(wheel: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(entry) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


if __name__ == "__main__":
    kind, downloads, directory = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    try:
        {"cpu": cpu, "cuda": cuda}[kind](lock.read(SETUP / "pack.lock"), downloads, directory)
    except (Error, subprocess.CalledProcessError) as error:
        sys.exit(f"setup: {error}")
