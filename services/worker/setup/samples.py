"""Takes sample pictures and sample speech out of their packages: `samples.py <downloads> <directory>`.

Only pictures that scikit-image's own documentation says are free of restrictions are taken.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from convert import lock

SETUP = Path(__file__).parent

# Picture, what it shows, and its standing as `skimage.data` documents it.
PICTURES = {
    "astronaut.png": ("Eileen Collins, NASA, 1999", "public domain (NASA Great Images database)"),
    "camera.png": ("a photographer with a camera on a tripod, grey; Lav Varshney", "CC0"),
    "chelsea.png": ("the cat Chelsea; Stefan van der Walt", "CC0"),
    "coffee.png": ("a cup of espresso, courtesy of Pikolo Espresso Bar; Rachel Michetti", "CC0"),
    "hubble_deep_field.jpg": ("the Hubble eXtreme Deep Field, NASA and ESA", "public domain"),
    "rocket.jpg": ("a Falcon 9 before its launch, SpaceX, 2015", "public domain"),
}

SPEECH = "usr/share/pocketsphinx/test/data/librivox"


def build(downloads: Path, directory: Path) -> None:
    """Writes `images/`, `speech/` with `transcripts.tsv`, and `ATTRIBUTION.md`."""
    packages = lock.read(SETUP / "pack.lock")
    images, speech = directory / "images", directory / "speech"
    images.mkdir()
    speech.mkdir()
    with zipfile.ZipFile(packages["scikit-image"].location(downloads)) as wheel:
        for name in PICTURES:
            (images / name).write_bytes(wheel.read(f"skimage/data/{name}"))
    with tempfile.TemporaryDirectory() as scratch:
        deb = packages["pocketsphinx-testdata"].location(downloads)
        subprocess.run(["dpkg", "-x", str(deb), scratch], check=True)
        transcripts = _transcripts((Path(scratch) / SPEECH / "transcription").read_text())
        for name in transcripts:
            shutil.copy(Path(scratch) / SPEECH / f"{name}.wav", speech)
    lines = [f"{name}.wav\t{text}\n" for name, text in sorted(transcripts.items())]
    (speech / "transcripts.tsv").write_text("".join(lines))
    (directory / "ATTRIBUTION.md").write_text(_attribution(packages))


def _transcripts(text: str) -> dict[str, str]:
    """Lines of the form `<s> words </s> (name)`."""
    return {name: words for words, name in re.findall(r"^<s> (.*) </s> \((\S+)\)$", text, re.MULTILINE)}


def _attribution(packages: dict[str, lock.Package]) -> str:
    pictures, speech = packages["scikit-image"], packages["pocketsphinx-testdata"]
    rows = "".join(f"| `images/{name}` | {what} | {licence} |\n" for name, (what, licence) in PICTURES.items())
    return f"""# Where the samples come from

## Pictures
From `{pictures.name}` {pictures.version} (PyPI); authors and licences as documented in its module `skimage.data`.

| file | what | licence |
| --- | --- | --- |
{rows}
## Speech
`speech/*.wav`, 16 kHz mono, from Debian's `{speech.name}` {speech.version} (BSD-2-Clause, Carnegie Mellon University):
sentences of Jane Austen's *Sense and Sensibility*, chapter 1, read by a volunteer of LibriVox, whose recordings are in
the public domain. `speech/transcripts.tsv` has the package's transcripts.
"""


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
