"""Tensors through POSIX shared memory."""

import os
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shared_memory
from tensors import fp32_input, rows
from tritonclient.utils import InferenceServerException

SIZE = 2 * 16 * 4


@pytest.fixture
def region(client):
    """A region of twice the size, registered: input first, output behind it."""
    name = f"sensorium-test-{uuid4().hex}"
    handle = shared_memory.create_shared_memory_region(name, name, 2 * SIZE)
    client.register_system_shared_memory(name, name, 2 * SIZE)
    yield name, handle
    client.unregister_system_shared_memory(name)
    shared_memory.destroy_shared_memory_region(handle)


def shared_input(name: str, offset: int = 0, size: int = SIZE) -> triton.InferInput:
    tensor = triton.InferInput("INPUT0", [2, 16], "FP32")
    tensor.set_shared_memory(name, size, offset=offset)
    return tensor


def test_round_trip(client, region):
    name, handle = region
    values = rows(2) + 0.5
    shared_memory.set_shared_memory_region(handle, [values])
    output = triton.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory(name, SIZE, offset=SIZE)
    answer = client.infer("identity", [shared_input(name)], outputs=[output])
    described = answer.get_output("OUTPUT0")
    assert described.parameters["shared_memory_region"].string_param == name
    assert described.parameters["shared_memory_byte_size"].int64_param == SIZE
    got = shared_memory.get_contents_as_numpy(handle, np.float32, [2, 16], offset=SIZE)
    np.testing.assert_array_equal(got, values)


def test_input_alone(client, region):
    name, handle = region
    shared_memory.set_shared_memory_region(handle, [rows(2)])
    answer = client.infer("identity", [shared_input(name)])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), rows(2))


def test_status(client, region):
    name, _ = region
    told = client.get_system_shared_memory_status(name).regions[name]
    assert (told.name, told.offset, told.byte_size) == (name, 0, 2 * SIZE)


def test_mistakes(client, region):
    name, _ = region
    for tensor in (shared_input("nobody"), shared_input(name, offset=2 * SIZE), shared_input(name, size=2 * SIZE + 4)):
        with pytest.raises(InferenceServerException) as refusal:
            client.infer("identity", [tensor])
        assert "INVALID_ARGUMENT" in refusal.value.status()
    small = triton.InferRequestedOutput("OUTPUT0")
    small.set_shared_memory(name, 8, offset=SIZE)
    with pytest.raises(InferenceServerException, match="8 bytes"):
        client.infer("identity", [shared_input(name)], outputs=[small])
    with pytest.raises(InferenceServerException, match="already registered"):
        client.register_system_shared_memory(name, name, SIZE)
    with pytest.raises(InferenceServerException, match="cannot open"):
        client.register_system_shared_memory("other", "no-such-region", SIZE)
    with pytest.raises(InferenceServerException, match="bytes"):
        client.register_system_shared_memory("other", name, 4 * SIZE)


def test_a_region_that_is_gone(client, region):
    name, _ = region
    client.unregister_system_shared_memory(name)
    with pytest.raises(InferenceServerException, match="not registered"):
        client.infer("identity", [shared_input(name)])


def test_cuda_needs_a_gpu(client):
    with pytest.raises(InferenceServerException) as refusal:
        client.register_cuda_shared_memory("r", b"", 0, 64)
    assert "UNIMPLEMENTED" in refusal.value.status()
    # there is none, which is no error: the examples begin by forgetting all
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("r")


def test_a_region_made_again_is_never_stale(client, region):
    name, handle = region
    shared_memory.set_shared_memory_region(handle, [rows(2)])
    client.infer("identity", [shared_input(name)])
    # as after a client's restart: the object is gone, and another one comes under its key
    os.unlink(f"/dev/shm/{name}")
    with pytest.raises(InferenceServerException, match=f"{name}.*removed"):
        client.infer("identity", [shared_input(name)])
    again = (rows(2) + 7).tobytes()
    Path(f"/dev/shm/{name}").write_bytes(again + bytes(SIZE))
    with pytest.raises(InferenceServerException, match=f"{name}.*made again"):
        client.infer("identity", [shared_input(name)])
    output = triton.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory(name, SIZE, offset=SIZE)
    with pytest.raises(InferenceServerException, match=f"{name}.*made again"):
        client.infer("identity", [fp32_input(rows(2))], outputs=[output])
    # under its name, without unregistering it first
    client.register_system_shared_memory(name, name, 2 * SIZE)
    answer = client.infer("identity", [shared_input(name)])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), rows(2) + 7)
    # cut short, it is refused rather than read past its end
    os.truncate(f"/dev/shm/{name}", SIZE)
    with pytest.raises(InferenceServerException, match=f"{name}.*{SIZE} bytes left"):
        client.infer("identity", [shared_input(name)])
