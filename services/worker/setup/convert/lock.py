"""`pack.lock`: which package files there are, and where the downloads lie."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One entry of the lock file."""

    name: str
    version: str
    registry: str
    group: str
    file: str
    sha256: str
    what: str
    # File inside the package that `sha256` and `file` speak of, for registries that serve no single file.
    path: str | None = None

    def location(self, downloads: Path) -> Path:
        """Where the verified file lies."""
        return downloads / f"{self.name}-{self.version}-{self.sha256[:12]}" / self.file


def read(path: Path) -> dict[str, Package]:
    """All entries by package name."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["package"]
    return {entry["name"]: Package(**entry) for entry in entries}
