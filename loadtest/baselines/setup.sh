#!/usr/bin/env bash
# The baselines that the benchmark compares speech and generation with: faster-whisper and llama.cpp in a Python of their
# own (llama.cpp is compiled, in about five minutes), the original model files, and a clip of ten seconds.
#
# Idempotent, after services/worker/setup/setup.sh. Prints the flags for `loadtest bench`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SENSORIUM_CACHE:-$HOME/.cache/sensorium}
folder=$cache/bench-$(cat "$here"/*.py "$here/requirements.txt" | sha256sum | cut -c1-12)

if [[ ! -e $folder/complete ]]; then
    echo "setup: baselines of the benchmark, in $folder" >&2
    rm -rf "$folder"
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet -r "$here/requirements.txt" >&2
    python3 "$here/unpack.py" "$cache/downloads" "$folder/models" >&2
    python3 "$here/clip.py" "$folder/clip.wav" 10 "$cache"/samples/speech/*.wav >&2
    touch "$folder/complete"
fi
echo "--python $folder/venv/bin/python --models-source $folder/models --clip $folder/clip.wav"
