"""Inference: raw and typed values, every kind of input, requested outputs, classification, compression."""

import json
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tensors import bytes_input, fp32_input, order, rows
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def test_numbers_come_back(client):
    answer = client.infer("identity", [fp32_input(rows(3))], request_id="seven")
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), rows(3))
    assert answer.get_response().id == "seven"


def test_typed_values(server):
    """The library sends raw values; the protocol also has typed ones."""
    with grpc.insecure_channel(server.grpc) as channel:
        request = service_pb2.ModelInferRequest(model_name="identity")
        tensor = request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
        tensor.contents.fp32_contents.extend(range(16))
        answer = triton.InferResult(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request))
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), rows(1))


def test_text(client):
    answer = client.infer("minilm", [bytes_input("text", "A cat sits on the sofa.", "Ein Satz, noch einer.")])
    embeddings = answer.as_numpy("embedding")
    assert embeddings.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=0.01)


def test_image(client, samples):
    picture = (samples / "images/coffee.png").read_bytes()
    answer = client.infer("efficientnet-lite0", [bytes_input("image", picture)])
    assert answer.as_numpy("embedding").shape == (1, 1280)
    assert abs(answer.as_numpy("probabilities").sum() - 1) < 0.01
    assert b"espresso" in answer.as_numpy("labels")[0][0]


def test_audio(client, samples):
    clip = (samples / "speech/sense_and_sensibility_01_austen_64kb-0880.wav").read_bytes()
    answer = client.infer("whisper-base", [bytes_input("audio", clip)])
    assert b"young man" in answer.as_numpy("transcript")[0]
    assert json.loads(answer.as_numpy("segments")[0])[0]["end"] > 1


def test_requested_outputs(client, samples):
    picture = bytes_input("image", (samples / "images/coffee.png").read_bytes())
    answer = client.infer("efficientnet-lite0", [picture], outputs=[triton.InferRequestedOutput("labels")])
    assert [output.name for output in answer.get_response().outputs] == ["labels"]
    with pytest.raises(InferenceServerException, match="probabilities"):
        client.infer("efficientnet-lite0", [picture], outputs=[triton.InferRequestedOutput("nothing")])


def test_classification(client, samples):
    picture = bytes_input("image", (samples / "images/coffee.png").read_bytes())
    wanted = triton.InferRequestedOutput("probabilities", class_count=3)
    classes = client.infer("efficientnet-lite0", [picture], outputs=[wanted]).as_numpy("probabilities")
    assert classes.shape == (1, 3)
    value, index, label = classes[0][0].decode().split(":")
    assert float(value) > 0.5 and index == "967" and "espresso" in label
    plain = client.infer("identity", [fp32_input(rows(1))], outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=2)])
    assert [element.decode() for element in plain.as_numpy("OUTPUT0")[0]] == ["15.000000:15", "14.000000:14"]


@pytest.mark.parametrize("algorithm", ["gzip"])
def test_compression(client, algorithm):
    answer = client.infer("identity", [fp32_input(rows(500))], compression_algorithm=algorithm)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), rows(500))


def test_async_infer(client):
    answers = Queue()
    for count in range(1, 21):
        client.async_infer("identity", [fp32_input(rows(count))], lambda result, error: answers.put((result, error)))
    seen = set()
    for _ in range(20):
        result, error = answers.get(timeout=60)
        assert error is None
        seen.add(result.as_numpy("OUTPUT0").shape[0])
    assert seen == set(range(1, 21))


def test_many_threads(server):
    def work(number):
        with triton.InferenceServerClient(server.grpc) as client:
            for _ in range(20):
                values = rows(2) + number
                answer = client.infer("identity", [fp32_input(values)])
                np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), values)
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_priority_and_timeout_parameters(client):
    answer = client.infer("chaos", order(), priority=1, timeout=30_000_000)
    assert answer.as_numpy("OUTPUT0").shape == (1, 16)


def test_a_queue_timeout_is_a_deadline(client):
    blocked = Queue()
    client.async_infer("chaos", order(1500), lambda result, error: blocked.put(error))
    # one that comes later may overtake the blocker on its way: then it blocks in its place
    with pytest.raises(InferenceServerException) as refusal:
        while blocked.empty():
            client.infer("chaos", order(), timeout=100_000)
    assert "DEADLINE_EXCEEDED" in refusal.value.status()
    assert blocked.get(timeout=60) is None


def test_a_client_timeout_is_a_deadline(client):
    with pytest.raises(InferenceServerException) as refusal:
        client.infer("chaos", order(10_000), client_timeout=0.3)
    assert "DEADLINE_EXCEEDED" in refusal.value.status()
    # and the ten seconds are not served for nobody
    client.infer("chaos", order(), client_timeout=8)


def refused(client, model, inputs, *words):
    with pytest.raises(InferenceServerException) as refusal:
        client.infer(model, inputs)
    for word in words:
        assert word in str(refusal.value), refusal.value


def test_mistakes_are_named(client):
    row = rows(1)
    refused(client, "identity", [fp32_input(row, "INPUT9")], "INVALID_ARGUMENT", "INPUT9", "INPUT0")
    refused(client, "identity", [fp32_input(row[:, :4])], "INVALID_ARGUMENT", "[1, 4]", "[-1, 16]")
    wrong = triton.InferInput("INPUT0", [1, 16], "INT64")
    wrong.set_data_from_numpy(row.astype(np.int64))
    refused(client, "identity", [wrong], "INVALID_ARGUMENT", "INT64", "FP32")
    refused(client, "identity", [], "INVALID_ARGUMENT", "INPUT0", "missing")
    refused(client, "efficientnet-lite0", [bytes_input("image", b"no image")], "INVALID_ARGUMENT", "8 bytes")
    refused(client, "silero-vad", [bytes_input("audio", b"no clip")], "INVALID_ARGUMENT", "7 bytes")
    refused(client, "nobody", [fp32_input(row)], "NOT_FOUND", "identity")


DTYPES = ["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP64", "BF16"]


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_is_read(client, datatype):
    """Well-formed tensors of any datatype reach the model's own check."""
    kind = triton_to_np_dtype(datatype)
    tensor = triton.InferInput("INPUT0", [1, 16], datatype)
    tensor.set_data_from_numpy(np.ones((1, 16), dtype=kind))
    refused(client, "identity", [tensor], "INVALID_ARGUMENT", f"{datatype}, expected FP32")
