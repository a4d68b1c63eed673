"""Checks an ONNX file for dangerous parts before ONNX Runtime opens it.

A graph can name other files: tensors outside it (`external_data`), and operators of `com.microsoft`
that load a compiled context by path. It can name libraries of custom operators, and it can loop for
ever. Graphs that `models` exports have none of these parts, so the check refuses them all.

An ONNX file is a protocol buffer: a sequence of fields, each a number, a wire type and a value. The
field numbers below come from onnx.proto. The check skips payloads without copying them, so its time
depends on the number of nodes and not on the weights (docs/decisions/0020).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

from service.bundle.plain_files import open_plain
from service.errors import FileCorrupt, FileMissing, ManifestInvalid

MAX_MESSAGES: Final = 400_000
"""Most nodes, attributes, tensors and so on in one file. A choice: ours have some thousands."""
MAX_FIELDS: Final = 4_000_000
"""A choice: ten for each message. With the bound above it bounds the time of the check."""
MAX_DEPTH: Final = 16
"""Most messages nested in one another. A choice, well above our graphs."""
MAX_NAME_BYTES: Final = 4096

_DOMAINS: Final = (b"", b"ai.onnx", b"ai.onnx.ml")
"""ONNX's own; the last one has the trees of a re-ranker."""
_REFUSED_OPERATORS: Final = (b"Loop", b"Scan")
_HERE: Final = 0

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PARTS: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "opset": {},
    "tensor": {},
    "value": {},
}
"""For each kind of message, the fields that the check descends into, and their kinds."""
_NODE_OPERATOR, _NODE_DOMAIN, _OPSET_DOMAIN, _FUNCTION_DOMAIN = 4, 7, 1, 10
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14

Span: TypeAlias = tuple[int, int]
Field: TypeAlias = tuple[int, int, int, int]
"""Number, wire type, and then a varint's value and end, or a payload's start and end."""


class _Refused(ValueError):
    """Why the file may not be opened."""


def check_onnx(path: Path) -> None:
    """Raises ManifestInvalid if a graph is broken, too large, or has a part that is refused."""
    try:
        with (
            open_plain(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            _Reader(data).check("model", (0, len(data)), 0)
    except (ValueError, FileCorrupt, FileMissing) as exc:  # an empty file cannot be mapped
        raise ManifestInvalid(f"{path} is not a graph that may be opened: {exc}") from exc


class _Reader:
    """Walks the messages of one file and counts them."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._messages = 0
        self._fields = 0

    def check(self, kind: str, span: Span, depth: int) -> None:
        """Raises ValueError if this message of kind `kind`, or one inside it, is refused."""
        self._messages += 1
        if depth > MAX_DEPTH or self._messages > MAX_MESSAGES:
            raise _Refused(f"it is over {MAX_DEPTH} deep, or over {MAX_MESSAGES} parts long")
        parts = _PARTS[kind]
        for number, wire, start, end in self._fields_of(span):
            part = parts.get(number)
            if part is not None:
                if wire != _BYTES:
                    raise _Refused(f"field {number} of a {kind} is not a message")
                if part == "training":
                    raise _Refused("it carries a training graph")
                self.check(part, (start, end), depth + 1)
            else:
                self._check_field(kind, number, wire, start, end)

    def _check_field(self, kind: str, number: int, wire: int, start: int, end: int) -> None:
        if kind == "tensor":
            if number == _TENSOR_EXTERNAL:
                raise _Refused("a tensor lies in another file (external_data)")
            if number == _TENSOR_LOCATION and (wire, start) != (_VARINT, _HERE):
                raise _Refused("a tensor lies in another file (data_location)")
        elif kind == "node" and number == _NODE_OPERATOR:
            if (name := self._text(wire, start, end)) in _REFUSED_OPERATORS:
                raise _Refused(f"operator {name.decode()} may run for ever")
        elif (kind, number) in _DOMAIN_FIELDS:
            self._check_domain(self._text(wire, start, end))

    def _check_domain(self, name: bytes) -> None:
        if name not in _DOMAINS:
            domain = name.decode(errors="replace")[:80]
            raise _Refused(f"it uses operators of {domain!r}, only ONNX's own are allowed")

    def _text(self, wire: int, start: int, end: int) -> bytes:
        if wire != _BYTES or end - start > MAX_NAME_BYTES:
            raise _Refused(f"byte {start} starts no name of at most {MAX_NAME_BYTES} bytes")
        return bytes(self._data[start:end])

    def _fields_of(self, span: Span) -> Iterator[Field]:
        place, stop = span
        while place < stop:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise _Refused(f"it has over {MAX_FIELDS} fields")
            tag, place = self._varint(place, stop)
            # Other readers would cut a longer tag to 32 bits and see another field.
            if tag >> 32 or not tag >> 3:
                raise _Refused(f"the field before byte {place} is broken")
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, place = self._varint(place, stop)
                yield number, wire, value, place
                continue
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
            if wire == _BYTES:
                size, place = self._varint(place, stop)
            if size is None or size > stop - place:
                raise _Refused(f"the field at byte {place} is broken")
            yield number, wire, place, place + size
            place += size

    def _varint(self, place: int, stop: int) -> tuple[int, int]:
        value = shift = 0
        while place < stop and shift < 64:
            byte = self._data[place]
            value |= (byte & 0x7F) << shift
            place += 1
            if byte < 0x80:
                return value, place
            shift += 7
        raise _Refused(f"the number before byte {place} has no end")


_DOMAIN_FIELDS: Final = (
    ("node", _NODE_DOMAIN),
    ("opset", _OPSET_DOMAIN),
    ("function", _FUNCTION_DOMAIN),
)
