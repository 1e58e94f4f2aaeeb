#!/usr/bin/env bash
# Everything that Sensorium needs beside its source: build tools, libtorch, the model pack, samples.
#
#   setup.sh            what building and running need
#   setup.sh --tests    also what the tests need: etcd, NATS and Redis to start, iproute2, and a Python with Triton's client
#   setup.sh --fuzz     also cargo-fuzz
#
# Idempotent: what is there is not made again, and a second run takes about a second. All of it but the Debian packages
# lies in ${SENSORIUM_CACHE:-~/.cache/sensorium}, in folders named after version and checksum, each made aside and
# renamed when whole. `downloads/` in there may be deleted at any time.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SENSORIUM_CACHE:-$HOME/.cache/sensorium}
downloads=$cache/downloads
tests=false
fuzz=false
cargo_fuzz=0.13.2
export PYTHONDONTWRITEBYTECODE=1

say() { printf 'setup: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

for argument in "$@"; do
    case $argument in
        --tests) tests=true ;;
        --fuzz) fuzz=true ;;
        -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        *) fail "unknown argument '$argument', expected --tests or --fuzz" ;;
    esac
done

# key <group> <path...>: a short name for a group of the lock file and the contents of files and folders.
key() {
    local group=$1
    shift
    {
        awk -v RS= -v group="group = \"$group\"" 'index($0, group)' "$here/pack.lock"
        find "$@" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 cat
    } | sha256sum | cut -c1-12
}

# make <directory> <command...>: runs the command with an empty folder as its last argument, which becomes <directory>.
make() {
    local directory=$1 scratch
    shift
    scratch=$(mktemp -d "$cache/.making-XXXXXX")
    chmod 755 "$scratch"
    making=$scratch
    "$@" "$scratch"
    mv -T "$scratch" "$directory"
    making=
}
making=
trap '[[ -z $making ]] || rm -rf "$making"' EXIT

debian_packages() {
    command -v dpkg-query > /dev/null || { say "not Debian: see to g++, make, pkg-config, cmake, protoc, python3 yourself"; return; }
    local wanted=(g++ make pkg-config cmake protobuf-compiler libprotobuf-dev python3 python3-venv ca-certificates curl) missing=() package
    $tests && wanted+=(etcd-server nats-server redis-server iproute2)
    for package in "${wanted[@]}"; do
        [[ $(dpkg-query -W -f '${Status}' "$package" 2> /dev/null) == 'install ok installed' ]] || missing+=("$package")
    done
    # In a fresh container apt knows of no package at all, and the sample speech is one.
    if ((${#missing[@]})) || ! apt-cache show pocketsphinx-testdata &> /dev/null; then
        local root=()
        ((EUID == 0)) || root=(sudo)
        say "Debian packages: ${missing[*]:-(none, but the lists are empty)}"
        "${root[@]}" apt-get update -qq
        ((${#missing[@]} == 0)) || "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}"
    fi
}

# venv <name> <requirements>: a Python with those packages, its path in $python.
venv() {
    local directory
    directory=$cache/$1-$(key none "$2")
    if [[ ! -e $directory/complete ]]; then
        say "Python packages of $(basename "$2")"
        # Scripts of a venv hold its path, so it cannot be made aside and moved.
        rm -rf "$directory"
        "$system_python" -m venv "$directory"
        "$directory/bin/python" -m pip --disable-pip-version-check --no-input --retries 10 --timeout 60 \
            install --quiet --only-binary :all: --require-hashes -r "$2"
        touch "$directory/complete"
    fi
    python=$directory/bin/python
}

mkdir -p "$cache"
exec 9> "$cache/.lock"
flock -n 9 || { say 'another set-up is running, waiting for it'; flock 9; }

debian_packages
system_python=$(command -v python3) || fail 'python3 is not installed'
"$system_python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
    fail "$system_python is $("$system_python" --version), expected Python 3.11 to 3.13"
command -v cargo > /dev/null || export PATH=$HOME/.cargo/bin:$PATH

test_python=
if $tests; then
    venv test-venv "$here/requirements-test.txt"
    test_python=$python
fi
venv convert-venv "$here/requirements.txt"

fuzzer=$cache/cargo-fuzz-$cargo_fuzz
if $fuzz; then
    if [[ ! -d $fuzzer ]]; then
        say "cargo-fuzz $cargo_fuzz"
        make "$fuzzer" cargo install --quiet --locked --version "$cargo_fuzz" cargo-fuzz --root
    fi
    ln -sfnT "$fuzzer" "$cache/cargo-fuzz"
fi

device=cpu
! nvidia-smi &> /dev/null || device=cuda
libtorch=$cache/libtorch-$device-$(key libtorch "$here/libtorch.py")
if [[ ! -d $libtorch ]]; then
    say "libtorch for $device: 0.5 GB to download, several for cuda"
    "$python" "$here/fetch.py" libtorch "$downloads"
    make "$libtorch" "$python" "$here/libtorch.py" "$device" "$downloads"
fi

samples=$cache/samples-$(key samples "$here/samples.py")
if [[ ! -d $samples ]]; then
    say 'samples: pictures and speech'
    "$python" "$here/fetch.py" samples "$downloads"
    make "$samples" "$python" "$here/samples.py" "$downloads"
fi

models=$cache/models-$(key models "$here"/{convert,models,cards,requirements.txt})
if [[ ! -d $models ]]; then
    say 'model pack: 0.4 GB to download, then converted and checked'
    "$python" "$here/fetch.py" models "$downloads"
    make "$models" env PYTHONPATH="$here" "$python" -m convert "$downloads"
fi

for name in libtorch models samples; do
    ln -sfnT "${!name}" "$cache/$name"
done
{
    echo "LIBTORCH=$libtorch"
    echo "SENSORIUM_REPOSITORY=$models"
    echo "SENSORIUM_SAMPLES=$samples"
    if [[ -n $test_python ]]; then
        echo "SENSORIUM_TEST_PYTHON=$test_python"
    elif [[ -e $cache/env ]]; then
        grep '^SENSORIUM_TEST_PYTHON=' "$cache/env" || true
    fi
} > "$cache/env.new"
mv "$cache/env.new" "$cache/env"
say "ready; $cache/env:"
sed 's/^/  /' "$cache/env"
