"""Our messages are those of stock clients, field by field: what reflection tells against the client's descriptors."""

import grpc
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from tritonclient.grpc import model_config_pb2, service_pb2


def varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def length_delimited(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a message: all that a reflection answer is made of here."""
    found, at = [], 0

    def read() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = read()
        if key & 7 == 2:
            size = read()
            found.append((key >> 3, message[at : at + size]))
            at += size
        else:
            assert key & 7 == 0, f"wire type {key & 7}"
            read()
    return found


@pytest.fixture(scope="module", params=["v1", "v1alpha"])
def files(server, request) -> list[FileDescriptorProto]:
    """The file of our service and all that it imports, by reflection; no package of reflection stubs is needed."""
    # ServerReflectionRequest.file_containing_symbol = 4
    question = length_delimited(4, b"inference.GRPCInferenceService")
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_stream(f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo")
        [answer] = call(iter([question]), timeout=60)
        # ServerReflectionResponse.file_descriptor_response = 4, its file_descriptor_proto = 1
        [found] = [payload for number, payload in fields(answer) if number == 4]
        parsed = [FileDescriptorProto.FromString(file) for number, file in fields(found) if number == 1]
        names = {file.name for file in parsed}
        for name in {needed for file in parsed for needed in file.dependency} - names:
            [answer] = call(iter([length_delimited(3, name.encode())]), timeout=60)
            [found] = [payload for number, payload in fields(answer) if number == 4]
            parsed += [FileDescriptorProto.FromString(file) for number, file in fields(found) if number == 1]
    return parsed


def messages(file: FileDescriptorProto) -> dict[str, DescriptorProto]:
    """All messages, nested ones too, by their full names."""

    def walk(prefix: str, message: DescriptorProto):
        name = f"{prefix}.{message.name}"
        yield name, message
        for nested in message.nested_type:
            yield from walk(name, nested)

    return {name: message for top in file.message_type for name, message in walk(file.package, top)}


def wire(message: DescriptorProto) -> dict[int, tuple]:
    """What decides about bytes: number, name, type, label, and the type's name."""
    return {
        field.number: (field.name, field.type, field.label, field.type_name, field.HasField("oneof_index"))
        for field in message.field
    }


def enums(file: FileDescriptorProto) -> dict[str, dict[str, int]]:
    found = {f"{file.package}.{enum.name}": enum for enum in file.enum_type}
    for name, message in messages(file).items():
        found |= {f"{name}.{enum.name}": enum for enum in message.enum_type}
    return {name: {value.name: value.number for value in enum.value} for name, enum in found.items()}


def theirs() -> list[FileDescriptorProto]:
    parsed = []
    for module in (service_pb2, model_config_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        parsed.append(file)
    return parsed


def test_messages_are_equal_field_by_field(files):
    ours = {name: wire(message) for file in files for name, message in messages(file).items()}
    expected = {name: wire(message) for file in theirs() for name, message in messages(file).items()}
    assert len(expected) > 80
    assert set(expected) <= set(ours), set(expected) - set(ours)
    different = {name: (ours[name], fields) for name, fields in expected.items() if ours[name] != fields}
    assert not different


def test_enumerations_are_equal(files):
    ours = {name: values for file in files for name, values in enums(file).items()}
    for file in theirs():
        for name, values in enums(file).items():
            assert ours[name] == values, name


def test_the_service_has_all_calls(files):
    def calls(parsed):
        [service] = [service for file in parsed for service in file.service]
        return {
            method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            for method in service.method
        }

    ours, expected = calls(files), calls(theirs())
    assert len(expected) == 20
    assert ours == expected
