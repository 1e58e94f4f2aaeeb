"""Starts the real binary once, on free ports, for a suite that stock clients drive."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import torchscript
import tritonclient.grpc as triton

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("SENSORIUM_CACHE", Path.home() / ".cache/sensorium"))
READY_SECONDS = 180


@dataclass
class Server:
    """Where the server listens."""

    grpc: str
    http: str
    repository: Path


def _there(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable, default))
    assert path.exists(), f"{path} is missing; set {variable}, or run `make test`"
    return path


def _free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """The server with the default pack, `chaos`, a model that does what its input says, and TorchScript models."""
    binary = _there("SENSORIUM_BINARY", ROOT / "target/release/sensorium")
    pack = _there("SENSORIUM_REPOSITORY", CACHE / "models")
    repository = tmp_path_factory.mktemp("repository")
    for model in pack.iterdir():
        (repository / model.name).symlink_to(model)
    (repository / "chaos/1").mkdir(parents=True)
    (repository / "chaos/model.toml").write_text((Path(__file__).parent / "chaos.toml").read_text())
    torchscript.simple(repository)
    for datatype in torchscript.DATATYPES:
        torchscript.same(repository, datatype)
    address, side = _free_address(), _free_address()
    ours = ("SENSORIUM_", "OTEL_", "RUST_LOG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    arguments = [binary, "serve", "--grpc", address, "--http", side, "--repository", repository]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        until = time.monotonic() + READY_SECONDS
        while not _ready(side):
            assert process.poll() is None, f"the server ended:\n{log.read_text()}"
            assert time.monotonic() < until, f"the server is not ready:\n{log.read_text()}"
            time.sleep(0.05)
        yield Server(address, side, repository)
    finally:
        process.terminate()
        try:
            code = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert code == 0, f"the server ended with {code}:\n{log.read_text()}"


@pytest.fixture
def client(server: Server):
    """A client of its own for each test."""
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="session")
def samples() -> Path:
    """Pictures and speech."""
    return _there("SENSORIUM_SAMPLES", CACHE / "samples")
