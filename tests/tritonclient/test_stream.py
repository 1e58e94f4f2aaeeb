"""ModelStreamInfer: generation piece by piece."""

from queue import Queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tensors import bytes_input, fp32_input, order, rows
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

MODEL = "smollm2-135m"
COUNTING = {"max_tokens": 16, "temperature": 0.0, "raw": True}


@pytest.fixture
def stream(client):
    """A started stream, and the queue of its answers."""
    answers = Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    yield answers
    client.stop_stream()


def text(result: triton.InferResult) -> str:
    return result.as_numpy("text")[0].decode()


def is_final(result: triton.InferResult) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


def pieces_of(answers: Queue) -> list[triton.InferResult]:
    pieces = []
    while not pieces or not is_final(pieces[-1]):
        result, error = answers.get(timeout=60)
        assert error is None, error
        pieces.append(result)
    return pieces


def test_pieces_are_the_whole_text(client, stream):
    prompt = bytes_input("prompt", "1, 2, 3, 4, 5,")
    whole = text(client.infer(MODEL, [prompt], parameters=COUNTING))
    assert whole.startswith(" 6, 7, 8")
    client.async_stream_infer(MODEL, [prompt], request_id="count", parameters=COUNTING)
    pieces = pieces_of(stream)
    assert len(pieces) > 3
    assert "".join(map(text, pieces)) == whole
    assert {piece.get_response().id for piece in pieces} == {"count"}
    last = pieces[-1].get_response().parameters
    assert last["finish_reason"].string_param == "length"
    assert last["completion_tokens"].uint64_param == 16


def test_an_empty_final_response_if_asked_for(client, stream):
    prompt = bytes_input("prompt", "1, 2, 3, 4, 5,")
    client.async_stream_infer(MODEL, [prompt], enable_empty_final_response=True, parameters=COUNTING)
    pieces = pieces_of(stream)
    assert not pieces[-1].get_response().outputs
    assert len(pieces) > 3


def test_a_mistake_does_not_end_the_stream(client, stream):
    client.async_stream_infer(MODEL, [bytes_input("prompt", "")], parameters=COUNTING)
    result, error = stream.get(timeout=60)
    assert result is None and isinstance(error, InferenceServerException) and "prompt" in str(error)
    client.async_stream_infer("identity", [fp32_input(rows(2))])
    result, error = stream.get(timeout=60)
    assert error is None
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), rows(2))


def answers_of(stream, count: int) -> list[tuple]:
    return [stream.get(timeout=60) for _ in range(count)]


def test_what_answers_once_answers_in_order(client, stream):
    """A slow request holds back the answers, not the work, of those behind it; mistakes keep their places."""
    client.async_stream_infer("chaos", order(700), request_id="0")
    for number in range(1, 12):
        name = str(number)
        if number % 4 == 1:
            client.async_stream_infer("nobody", [fp32_input(rows(1))], request_id=name)
        else:
            client.async_stream_infer("identity", [fp32_input(rows(1) + number)], request_id=name)
    for number, (result, error) in enumerate(answers_of(stream, 12)):
        if number % 4 == 1:
            assert result is None and f"[request id: {number}]" in str(error) and "nobody" in str(error)
        else:
            assert error is None and result.get_response().id == str(number)


def test_pieces_overtake_what_answers_once(client, stream):
    client.async_stream_infer("chaos", order(120_000), request_id="slow")
    prompt = bytes_input("prompt", "1, 2, 3, 4, 5,")
    client.async_stream_infer(MODEL, [prompt], request_id="pieces", parameters={**COUNTING, "max_tokens": 4})
    pieces = pieces_of(stream)
    assert {piece.get_response().id for piece in pieces} == {"pieces"}
    client.stop_stream(cancel_requests=True)


def test_what_answers_once_has_no_empty_response(client, stream):
    for flag in (True, False):
        client.async_stream_infer("identity", [fp32_input(rows(1))], enable_empty_final_response=flag)
        result, error = stream.get(timeout=60)
        assert error is None and is_final(result) and len(result.get_response().outputs) == 1
    assert stream.empty()


def test_an_error_ends_the_stream_where_that_is_asked_for(server):
    answers = Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
        client.async_stream_infer("identity", [fp32_input(rows(1))], request_id="good")
        client.async_stream_infer("identity", [fp32_input(rows(1), "INPUT9")], request_id="bad")
        result, error = answers.get(timeout=60)
        assert error is None and result.get_response().id == "good"
        result, error = answers.get(timeout=60)
        assert result is None and error.status() == "StatusCode.INVALID_ARGUMENT" and "INPUT9" in error.message()
        client.stop_stream()


def test_errors_carry_the_id_of_their_request(server):
    def requests():
        for name in ("first", "second"):
            yield service_pb2.ModelInferRequest(model_name="nobody", id=name)

    with grpc.insecure_channel(server.grpc) as channel:
        answers = list(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests(), timeout=60))
    assert [answer.infer_response.id for answer in answers] == ["first", "second"]
    assert all("Request for unknown model" in answer.error_message for answer in answers)


def test_sequences_run_together(client, stream):
    for number in range(6):
        prompt = bytes_input("prompt", "1, 2, 3, 4, 5,")
        client.async_stream_infer(MODEL, [prompt], request_id=str(number), parameters=COUNTING)
    texts: dict[str, str] = {}
    finals = 0
    while finals < 6:
        result, error = stream.get(timeout=60)
        assert error is None, error
        name = result.get_response().id
        texts[name] = texts.get(name, "") + text(result)
        finals += is_final(result)
    assert len(texts) == 6 and all(written.startswith(" 6, 7, 8") for written in texts.values())


def test_cancelling_a_stream(server):
    answers = Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        prompt = bytes_input("prompt", "1, 2, 3, 4, 5,")
        client.async_stream_infer(MODEL, [prompt], parameters={**COUNTING, "max_tokens": 1500})
        result, error = answers.get(timeout=60)
        assert error is None
        client.stop_stream(cancel_requests=True)
    with triton.InferenceServerClient(server.grpc) as client:
        client.infer(MODEL, [bytes_input("prompt", "1, 2,")], parameters=COUNTING, client_timeout=30)
