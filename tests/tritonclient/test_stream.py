"""ModelStreamInfer: generation piece by piece."""

from queue import Queue

import numpy as np
import pytest
import tritonclient.grpc as triton
from tensors import bytes_input, fp32_input, rows
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
