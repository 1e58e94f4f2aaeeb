"""Inputs as the client library takes them."""

import numpy as np
import tritonclient.grpc as triton


def bytes_input(name: str, *elements: bytes | str) -> triton.InferInput:
    """A BYTES vector."""
    array = np.array([element.encode() if isinstance(element, str) else element for element in elements], dtype=object)
    tensor = triton.InferInput(name, [len(elements)], "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor


def fp32_input(array: np.ndarray, name: str = "INPUT0") -> triton.InferInput:
    """An FP32 tensor."""
    tensor = triton.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array.astype(np.float32))
    return tensor


def order(milliseconds: float = 0) -> list[triton.InferInput]:
    """Makes `chaos` take so long."""
    return [fp32_input(np.array([[-milliseconds] + [0] * 15]))]


def rows(count: int) -> np.ndarray:
    """Rows that differ from each other."""
    return np.arange(count * 16, dtype=np.float32).reshape(count, 16)
