"""Tensors of the Open Inference Protocol over HTTP: as JSON, or as binary data after the JSON.

The body of a request is a JSON object, followed by the binary data of the inputs that have the
parameter `binary_data_size`, in the order of the inputs. Answers have the same layout. Binary
numbers are little-endian. Before each element of a BYTES tensor stands its length in bytes, as an
unsigned number of 4 bytes. The service offers neither shared memory nor classification.

Source: the extension "binary tensor data" of Triton Inference Server.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field

from service.errors import InvalidValue
from service.serving.json_object import JsonObject

LENGTH: Final = struct.Struct("<I")
"""The length of one element of a BYTES tensor in binary data."""

UNSUPPORTED: Final = ("shared_memory_region", "classification")
"""Parameters of Triton's extensions that would change an answer and that the service does not
offer."""


def _without_null(parameters: Any) -> Any:
    if not isinstance(parameters, dict):
        return parameters
    return {name: value for name, value in parameters.items() if value is not None}


Parameters = Annotated[dict[str, Any], BeforeValidator(_without_null)]
"""Parameters by name; like a field, one that is null was left out."""


class InputTensor(JsonObject):
    """One tensor of a request; its values are in `data`, or in the bytes after the JSON."""

    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[int] = Field(max_length=8, fail_fast=True)
    datatype: str
    parameters: Parameters = Field(default_factory=dict)
    data: list[Any] | None = None


class RequestedOutput(JsonObject):
    """The name of one output; its parameter `binary_data` chooses between binary form and JSON."""

    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: Parameters = Field(default_factory=dict)


class InferRequest(JsonObject):
    """The JSON of an inference request."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    inputs: list[InputTensor] = Field(
        min_length=1,
        max_length=8,
        fail_fast=True,
        examples=[
            [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["moby dick"]}],
            [
                {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["sea", "rome"]},
                {"name": "k", "datatype": "INT32", "shape": [1], "data": [3]},
            ],
        ],
    )
    outputs: list[RequestedOutput] | None = Field(None, max_length=8, fail_fast=True)
    parameters: Parameters = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of an answer: float32 values (n, width), or texts row by row."""

    name: str
    values: NDArray[np.float32] | Sequence[Sequence[str]]

    @property
    def datatype(self) -> str:
        """The protocol's name for the type of the values."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    @property
    def shape(self) -> list[int]:
        """Number of rows, and values in each row."""
        if isinstance(self.values, np.ndarray):
            return list(self.values.shape)
        return [len(self.values), len(self.values[0]) if self.values else 0]


def split_binary(inputs: Sequence[InputTensor], binary: bytes) -> list[bytes | None]:
    """The binary data of each input; None for an input whose values are in the JSON.

    Raises InvalidValue if the sizes of the inputs do not add up to the length of `binary`.
    """
    parts: list[bytes | None] = []
    start = 0
    for tensor in inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            parts.append(None)
            continue
        if type(size) is not int or size < 0 or start + size > len(binary):
            raise InvalidValue(
                f"input {tensor.name} has binary_data_size {size}, but {len(binary) - start} bytes "
                "are left after the JSON: send the binary data of each input in order"
            )
        parts.append(binary[start : start + size])
        start += size
    if start != len(binary):
        raise InvalidValue(
            f"{len(binary) - start} bytes after the JSON belong to no input: "
            "say binary_data_size for each input that has binary data"
        )
    return parts


def texts_of(tensor: InputTensor, binary: bytes | None) -> list[str]:
    """The texts of a BYTES tensor of shape [n] or [n, 1]; raises InvalidValue."""
    _check(tensor, "BYTES")
    shape = tensor.shape
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] < 0:
        raise InvalidValue(f"input {tensor.name} has shape {shape}: it must be [n] or [n, 1]")
    texts = _json_texts(tensor) if binary is None else _binary_texts(tensor, binary)
    if len(texts) != shape[0]:
        raise InvalidValue(
            f"input {tensor.name} has shape {shape} and {len(texts)} elements: they must agree"
        )
    return texts


def integer_of(tensor: InputTensor, binary: bytes | None) -> int:
    """The value of an INT32 or INT64 tensor with a single element; raises InvalidValue."""
    _check(tensor, "INT32", "INT64")
    if prod(tensor.shape) != 1:
        raise InvalidValue(f"input {tensor.name} has shape {tensor.shape}: it must hold one value")
    if binary is not None:
        size = int(tensor.datatype[3:]) // 8
        if len(binary) != size:
            raise InvalidValue(f"input {tensor.name} has {len(binary)} bytes, not {size}")
        return int.from_bytes(binary, "little", signed=True)
    values = _flat(tensor)
    if len(values) != 1 or type(values[0]) is not int:
        raise InvalidValue(f"input {tensor.name} must hold one whole number")
    return int(values[0])


def serialise(
    head: Mapping[str, Any], outputs: Sequence[OutputTensor], binary: Sequence[bool]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON; None if no binary data follows.

    `head` holds the fields of the JSON beside `outputs`. `binary` says of each output whether it
    goes into binary data. JSON has no NaN, so a NaN becomes null there.
    """
    entries: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, is_binary in zip(outputs, binary, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if is_binary:
            data = _binary(tensor.values)
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        elif isinstance(tensor.values, np.ndarray):
            entry["data"] = tensor.values.ravel()
        else:
            entry["data"] = [text for row in tensor.values for text in row]
        entries.append(entry)
    content = orjson.dumps({**head, "outputs": entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([content, *parts]), len(content) if any(binary) else None


def refuse_parameters(parameters: Mapping[str, Any], where: str) -> None:
    """Raise InvalidValue for a parameter that the service does not offer; `where` names its place.

    The service ignores other parameters that it does not know.
    """
    for name in UNSUPPORTED:
        if parameters.get(name):
            raise InvalidValue(f"{where} has {name}, which this service does not offer: remove it")


def _check(tensor: InputTensor, *datatypes: str) -> None:
    refuse_parameters(tensor.parameters, f"input {tensor.name}")
    if tensor.datatype not in datatypes:
        raise InvalidValue(
            f"input {tensor.name} has datatype {tensor.datatype[:20]!r}: it must be "
            f"{' or '.join(datatypes)}"
        )


def _flat(tensor: InputTensor) -> list[Any]:
    """The values of a tensor in JSON, row by row; they may come nested like the tensor's shape."""
    values = tensor.data
    if values is None:
        raise InvalidValue(f"input {tensor.name} has neither data nor binary_data_size: send one")
    if values and all(isinstance(value, list) for value in values):
        return [value for row in values for value in row]
    return values


def _json_texts(tensor: InputTensor) -> list[str]:
    texts = _flat(tensor)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidValue(f"input {tensor.name} must hold strings")
    return texts


def _binary_texts(tensor: InputTensor, binary: bytes) -> list[str]:
    texts: list[str] = []
    start = 0
    while start < len(binary):
        end = start + LENGTH.size
        if end <= len(binary):
            end += LENGTH.unpack_from(binary, start)[0]
        if end > len(binary) or end < start + LENGTH.size:
            raise InvalidValue(f"input {tensor.name} ends inside element {len(texts)}")
        try:
            texts.append(binary[start + LENGTH.size : end].decode())
        except UnicodeDecodeError:
            raise InvalidValue(
                f"input {tensor.name} holds an element {len(texts)} that is not UTF-8"
            ) from None
        start = end
    return texts


def _binary(values: NDArray[np.float32] | Sequence[Sequence[str]]) -> bytes:
    if isinstance(values, np.ndarray):
        return values.astype("<f4").tobytes()
    encoded = [text.encode(errors="replace") for row in values for text in row]
    return b"".join([part for text in encoded for part in (LENGTH.pack(len(text)), text)])
