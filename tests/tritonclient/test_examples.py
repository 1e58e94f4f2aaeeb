"""The calls of Triton's own Python examples for gRPC that need `simple`: what their users expect, they find.

What each test is named after is a file of `src/python/examples` in triton-inference-server/client.
"""

import asyncio
import json
from queue import Queue
from uuid import uuid4

import grpc
import numpy as np
import pytest
import torchscript
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.utils.shared_memory as shared_memory
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

MODEL = "simple"
COUNT = np.arange(16, dtype=np.int32).reshape(1, 16)
ONES = np.ones((1, 16), dtype=np.int32)
SIZE = COUNT.nbytes


def inputs(first: np.ndarray = COUNT, second: np.ndarray = ONES, library=triton) -> list:
    tensors = []
    for name, values in (("INPUT0", first), ("INPUT1", second)):
        tensors.append(library.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
        tensors[-1].set_data_from_numpy(values)
    return tensors


def outputs(library=triton) -> list:
    return [library.InferRequestedOutput("OUTPUT0"), library.InferRequestedOutput("OUTPUT1")]


def check(result, first: np.ndarray = COUNT, second: np.ndarray = ONES) -> None:
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), first + second)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), first - second)
    assert result.as_numpy("OUTPUT0").dtype == np.int32


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_simple_grpc_infer_client(client, compression):
    headers = {"test": "1"}
    check(client.infer(MODEL, inputs(), outputs=outputs(), headers=headers, compression_algorithm=compression))
    assert len(client.get_inference_statistics(model_name=MODEL).model_stats) == 1
    check(client.infer(MODEL, inputs(), outputs=None, compression_algorithm=compression))
    many = np.arange(20 * 16, dtype=np.int32).reshape(20, 16)
    check(client.infer(MODEL, inputs(many, -many)), many, -many)


def test_simple_grpc_async_infer_client(client):
    answers = Queue()
    for _ in range(8):
        client.async_infer(MODEL, inputs(), lambda result, error: answers.put((result, error)), outputs=outputs())
    for _ in range(8):
        result, error = answers.get(timeout=60)
        assert error is None
        check(result)


def test_simple_grpc_aio_infer_client(server):
    async def ask():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_model_ready(MODEL) and not await client.is_model_ready("wrong_model_name")
            check(await client.infer(MODEL, inputs(library=triton_aio), outputs=outputs(triton_aio)))

            async def requests():
                for number in range(4):
                    yield {"model_name": MODEL, "inputs": inputs(library=triton_aio), "request_id": str(number)}

            seen = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                check(result)
                seen.append(result.get_response().id)
            assert seen == ["0", "1", "2", "3"]

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_simple_grpc_health_metadata(client):
    headers = {"test": "1", "dummy": "2"}
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    # the example's own check of the name, 'triton', is the one thing that cannot hold
    assert client.get_server_metadata().name
    assert client.get_model_metadata(MODEL, headers=headers).name == MODEL
    for call in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException) as refusal:
            call("wrong_model_name")
        assert "Request for unknown model" in refusal.value.message()
    assert client.get_model_config(MODEL).config.name == MODEL


@pytest.mark.parametrize("arguments", ["keepalive", "custom"])
def test_simple_grpc_keepalive_and_custom_args_client(server, arguments):
    if arguments == "keepalive":
        options = triton.KeepAliveOptions(
            keepalive_time_ms=2**31 - 1,
            keepalive_timeout_ms=20_000,
            keepalive_permit_without_calls=False,
            http2_max_pings_without_data=2,
        )
        own = {"keepalive_options": options}
    else:
        own = {"channel_args": [("grpc.max_send_message_length", 1 << 20), ("grpc.max_receive_message_length", 1 << 20)]}
    with triton.InferenceServerClient(server.grpc, **own) as client:
        check(client.infer(MODEL, inputs(), outputs=outputs(), headers={"test": "1"}))


def test_grpc_explicit_int_content_client(server):
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    for name, values in (("INPUT0", COUNT), ("INPUT1", ONES)):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        tensor.contents.int_contents[:] = values[0].tolist()
    request.outputs.add(name="OUTPUT0")
    request.outputs.add(name="OUTPUT1")
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        check(triton.InferResult(stub.ModelInfer(request)))
        request.raw_input_contents.append(COUNT[0][:8].tobytes())
        request.inputs[0].contents.int_contents[:] = COUNT[0][8:].tolist()
        with pytest.raises(grpc.RpcError, match="INPUT0.*values are given twice") as refusal:
            stub.ModelInfer(request)
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT


class Shared:
    """A region of shared memory for two tensors, registered."""

    def __init__(self, client, about: str):
        self.name = f"{about}-{uuid4().hex}"
        self.handle = shared_memory.create_shared_memory_region(self.name, f"/{self.name}", 2 * SIZE)
        client.register_system_shared_memory(self.name, f"/{self.name}", 2 * SIZE)

    def read(self, tensor, offset: int) -> np.ndarray:
        kind = triton_to_np_dtype(tensor.datatype)
        return shared_memory.get_contents_as_numpy(self.handle, kind, tensor.shape, offset=offset)


def test_simple_grpc_shm_client_and_reuse_infer_objects_client(client):
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    given, taken = Shared(client, "input"), Shared(client, "output")
    shared_memory.set_shared_memory_region(given.handle, [COUNT[0]])
    shared_memory.set_shared_memory_region(given.handle, [ONES[0]], offset=SIZE)
    tensors = [triton.InferInput("INPUT0", [1, 16], "INT32"), triton.InferInput("INPUT1", [1, 16], "INT32")]
    wanted = outputs()
    # the same objects with shared memory, without it, and with it again
    for shared in (True, False, True):
        for place, (tensor, output) in enumerate(zip(tensors, wanted)):
            if shared:
                tensor.set_shared_memory(given.name, SIZE, offset=place * SIZE)
                output.set_shared_memory(taken.name, SIZE, offset=place * SIZE)
            else:
                tensor.set_data_from_numpy((COUNT, 2 * ONES)[place])
                output.unset_shared_memory()
        result = client.infer(model_name=MODEL, inputs=tensors, outputs=wanted)
        if shared:
            np.testing.assert_array_equal(taken.read(result.get_output("OUTPUT0"), 0), COUNT + ONES)
            np.testing.assert_array_equal(taken.read(result.get_output("OUTPUT1"), SIZE), COUNT - ONES)
        else:
            check(result, COUNT, 2 * ONES)
    assert set(client.get_system_shared_memory_status().regions) == {given.name, taken.name}
    client.unregister_system_shared_memory()
    assert not client.get_system_shared_memory_status().regions
    for region in (given, taken):
        shared_memory.destroy_shared_memory_region(region.handle)


@pytest.fixture
def controlled(server, client):
    """A model of its own for tests that load and unload."""
    name = f"simple-{uuid4().hex[:8]}"
    torchscript.simple(server.repository, name)
    client.load_model(name)
    yield name
    client.unload_model(name)


def batch_size(client, name: str) -> int:
    return client.get_model_config(name).config.max_batch_size


def test_simple_grpc_model_control(server, client, controlled):
    assert client.is_model_ready(controlled) and batch_size(client, controlled) == 8
    with pytest.raises(InferenceServerException) as refusal:
        client.load_model(controlled, config='"parameters": {"config": {{"max_batch_size": "16"}}}')
    assert "failed to load" in refusal.value.message()
    client.load_model(controlled, config='{"max_batch_size":"16"}')
    assert batch_size(client, controlled) == 16
    check(client.infer(controlled, inputs()))
    client.load_model(controlled)
    assert batch_size(client, controlled) == 8
    client.unload_model(controlled)
    assert not client.is_model_ready(controlled)
    with pytest.raises(InferenceServerException):
        client.load_model(controlled, config="{}", files={"file:" + "A" * 256: b"a"})
    assert client.is_server_live()
    with pytest.raises(InferenceServerException) as refusal:
        client.load_model("wrong_model_name")
    assert "failed to load" in refusal.value.message()
    client.load_model(controlled)


def test_a_configuration_that_was_read_can_be_changed_and_sent_back(client, controlled):
    config = client.get_model_config(controlled, as_json=True)["config"]
    config["max_batch_size"] = 5
    config["dynamic_batching"]["max_queue_delay_microseconds"] = "1500"
    client.load_model(controlled, config=json.dumps(config))
    told = client.get_model_config(controlled).config
    assert (told.max_batch_size, told.dynamic_batching.max_queue_delay_microseconds) == (5, 1500)
    many = np.arange(12 * 16, dtype=np.int32).reshape(12, 16)
    check(client.infer(controlled, inputs(many, many)), many, many)
    for bad, word in (
        ({"max_batch_size": 0}, "max_batch_size = 0"),
        ({"max_batch": 4}, "max_batch"),
        ({"platform": "tensorrt_plan"}, "tensorrt_plan"),
        ({"optimization": {"priority": "PRIORITY_MAX"}}, "optimization"),
        ({"name": "other"}, "other"),
    ):
        with pytest.raises(InferenceServerException, match=f"failed to load.*{word}") as refusal:
            client.load_model(controlled, config=json.dumps(bad))
        assert "INVALID_ARGUMENT" in refusal.value.status()
    # what was loaded goes on answering
    assert batch_size(client, controlled) == 5
    check(client.infer(controlled, inputs()))


def values(datatype: str) -> np.ndarray:
    """The lowest and highest values that a datatype has, and some in between."""
    kind = np.dtype(triton_to_np_dtype(datatype))
    if kind == np.bool_:
        return np.arange(16).reshape(1, 16) % 2 == 1
    if np.issubdtype(kind, np.integer):
        bounds = np.iinfo(kind)
        row = [bounds.min, bounds.max, bounds.max - 1, *range(13)]
    else:
        row = [-2.5, 1.5, 0.0, *range(13)]
    return np.array([row], dtype=kind)


@pytest.mark.parametrize("datatype", torchscript.DATATYPES)
def test_every_datatype_goes_through_a_module(client, datatype):
    sent = values(datatype)
    tensor = triton.InferInput("INPUT0", [1, 16], datatype)
    tensor.set_data_from_numpy(sent)
    answer = client.infer(f"same-{datatype.lower()}", [tensor])
    assert answer.get_output("OUTPUT0").datatype == datatype
    got = answer.as_numpy("OUTPUT0")
    np.testing.assert_array_equal(got.astype(sent.dtype), sent)
    two = np.concatenate([sent, sent])
    tensor = triton.InferInput("INPUT0", [2, 16], datatype)
    tensor.set_data_from_numpy(two)
    answer = client.infer(f"same-{datatype.lower()}", [tensor])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), np.concatenate([got, got]))


def test_any_byte_but_zero_is_true(server):
    odd = bytes([0, 1, 2, 3, 127, 128, 254, 255] * 2)
    request = service_pb2.ModelInferRequest(model_name="same-bool", raw_input_contents=[odd])
    request.inputs.add(name="INPUT0", datatype="BOOL", shape=[1, 16])
    with grpc.insecure_channel(server.grpc) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert answer.raw_output_contents[0] == bytes([0, 1, 1, 1, 1, 1, 1, 1] * 2)


def test_what_libtorch_has_not_is_refused_when_it_is_loaded(server, client):
    name = torchscript.same(server.repository, "BYTES")
    with pytest.raises(InferenceServerException, match="failed to load.*INPUT0.*BYTES.*libtorch"):
        client.load_model(name)
    assert not client.is_model_ready(name)
    complex_numbers = """
  def forward(self: __torch__.Model, INPUT0: Tensor) -> Tensor:
    return torch.complex(INPUT0, INPUT0)
"""
    torchscript.model(server.repository, "complex", complex_numbers, {"INPUT0": "FP32"}, {"OUTPUT0": "FP32"})
    with pytest.raises(InferenceServerException, match="failed to load.*OUTPUT0.*ComplexFloat"):
        client.load_model("complex")
