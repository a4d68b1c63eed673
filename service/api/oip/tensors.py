"""Tensors of the Open Inference Protocol over HTTP: JSON, and binary data that follows it.

A request is a JSON object; tensors that say `binary_data_size` have their bytes after it, in the
order of the inputs. Answers are laid out alike. Binary numbers are little-endian, and each element
of a BYTES tensor has its length before it, as 4 bytes. No shared memory, no classification.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.errors import InvalidValue

LENGTH: Final = struct.Struct("<I")
NOT_TAKEN: Final = ("shared_memory_region", "classification")


class InputTensor(BaseModel):
    """One tensor of a request; its values are in `data`, or in the bytes after the JSON."""

    model_config = ConfigDict(strict=True)

    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """One output that is wanted, and with `binary_data` in which form."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """The JSON of an inference request."""

    model_config = ConfigDict(strict=True)

    id: str | None = None
    inputs: list[InputTensor] = Field(
        min_length=1,
        max_length=8,
        examples=[
            [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["moby dick"]}],
            [
                {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["sea", "rome"]},
                {"name": "k", "datatype": "INT32", "shape": [1], "data": [3]},
            ],
        ],
    )
    outputs: list[RequestedOutput] | None = Field(None, max_length=8)
    parameters: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of an answer: float32 values (n, width), or texts row by row."""

    name: str
    values: NDArray[np.float32] | Sequence[Sequence[str]]

    @property
    def datatype(self) -> str:
        """The protocol's name of what the values are."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    @property
    def shape(self) -> list[int]:
        """Rows and their width."""
        if isinstance(self.values, np.ndarray):
            return list(self.values.shape)
        return [len(self.values), len(self.values[0]) if self.values else 0]


def split_binary(inputs: Sequence[InputTensor], binary: bytes) -> list[bytes | None]:
    """The bytes of each input, None where its values are in JSON; raises InvalidValue."""
    parts: list[bytes | None] = []
    start = 0
    for tensor in inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            parts.append(None)
            continue
        if type(size) is not int or size < 0 or start + size > len(binary):
            raise InvalidValue(
                f"input {tensor.name} has binary_data_size {size}, {len(binary) - start} bytes are "
                "left after the JSON: the body must hold the binary data of each input in order"
            )
        parts.append(binary[start : start + size])
        start += size
    if start != len(binary):
        raise InvalidValue(f"{len(binary) - start} bytes after the JSON belong to no input")
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
    """The one value of an INT32 or INT64 tensor; raises InvalidValue."""
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
    """A whole answer, and the length of its JSON where binary data follows, else None.

    A number that JSON does not have (NaN) is null there.
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, as_binary in zip(outputs, binary, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if as_binary:
            data = _binary(tensor.values)
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        elif isinstance(tensor.values, np.ndarray):
            entry["data"] = tensor.values.ravel()
        else:
            entry["data"] = [text for row in tensor.values for text in row]
        described.append(entry)
    content = orjson.dumps({**head, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([content, *parts]), len(content) if any(binary) else None


def refuse_parameters(parameters: Mapping[str, Any], where: str) -> None:
    """Raise InvalidValue for what would change an answer and is not offered."""
    for name in NOT_TAKEN:
        if parameters.get(name):
            raise InvalidValue(f"{where} asks for {name}, which is not offered: leave it out")


def _check(tensor: InputTensor, *datatypes: str) -> None:
    refuse_parameters(tensor.parameters, f"input {tensor.name}")
    if tensor.datatype not in datatypes:
        raise InvalidValue(
            f"input {tensor.name} has datatype {tensor.datatype[:20]!r}: it must be "
            f"{' or '.join(datatypes)}"
        )


def _flat(tensor: InputTensor) -> list[Any]:
    """The values of a tensor in JSON, which may be nested as its shape is."""
    values = tensor.data
    if values is None:
        raise InvalidValue(f"input {tensor.name} has neither data nor binary_data_size")
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
