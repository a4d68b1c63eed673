"""A traced fp32 encoder rewritten to fp16 or int8: what is stored, and what is computed in it.

    precision   tables                              the transformer's layers
    fp16        half precision                      half precision
    int8        int8, one scale a row               int8 matrix products, the rest fp32

Rows gathered from a table are widened, so a bag's arithmetic, pooling, projection and norm are fp32
in every precision. Activations are quantised with one scale *a token*: ONNX Runtime's own dynamic
quantisation has one a batch, by which an answer depends on what else is in the batch
(docs/decisions/0009).
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from models.config import Precision

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_BACKBONE: Final = "backbone"
_HALF_MAX: Final = 65504.0
_LEVELS: Final = 127.0
_SMALLEST: Final = 1e-9
"""Largest magnitude that a row of zeros is taken to have, so that nothing divides by zero."""

Replace: TypeAlias = Callable[["_Graph", NodeProto], list[NodeProto] | None]


def at_precision(traced: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """A copy of the traced graph in this precision, without the tracer's notes."""
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    graph = _Graph(model.graph)
    if precision == "fp16":
        graph.halve_backbone()
        graph.rewrite(_half_table)
    elif precision == "int8":
        graph.rewrite(_int8_product)
        graph.rewrite(_int8_table)
    graph.close()
    return model


class _Graph:
    """A graph while it is rewritten: nodes in order, stored tensors and new values by name."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self.nodes: list[NodeProto] = list(proto.node)
        self.stored = {tensor.name: tensor for tensor in proto.initializer}
        self.made: set[str] = set()

    def rewrite(self, replace: Replace) -> None:
        """Put what `replace` gives in a node's place; None leaves the node."""
        rewritten: list[NodeProto] = []
        for node in self.nodes:
            instead = replace(self, node)
            rewritten += [node] if instead is None else instead
        self.nodes = rewritten

    def store(self, name: str, values: NDArray[np.generic] | np.generic) -> str:
        """Keep a tensor or a single value under this name; returns the name."""
        self.stored[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def floats(self, name: str) -> NDArray[np.float32] | None:
        """The stored fp32 tensor of this name, if there is one."""
        tensor = self.stored.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def halve_backbone(self) -> None:
        """Store and compute the backbone in half precision, with casts where floats cross over."""
        floats = {
            info.name
            for info in self.proto.value_info
            if info.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        outside = [node for node in self.nodes if not _in_backbone(node)]
        given_outside = {value for node in outside for value in node.output}
        used_outside = {value for node in outside for value in node.input}
        nodes: list[NodeProto] = []
        for node in self.nodes:
            if not _in_backbone(node):
                nodes.append(node)
                continue
            for place, value in enumerate(node.input):
                node.input[place] = self._half_of(value, floats)
                if value in floats & given_outside and node.input[place] not in self.made:
                    self.made.add(node.input[place])
                    nodes.append(_cast(value, node.input[place], TensorProto.FLOAT16))
            for attribute in node.attribute:
                _halve_attribute(attribute)
            nodes.append(node)
            for place, value in enumerate(node.output):
                if value in floats:
                    node.output[place] = _half(value)
                if value in floats & used_outside:
                    nodes.append(_cast(_half(value), value, TensorProto.FLOAT))
        self.nodes = nodes

    def _half_of(self, value: str, floats: set[str]) -> str:
        values = self.floats(value)
        if values is not None:
            return self.store(_half(value), _halved(values))
        return _half(value) if value in floats else value

    def close(self) -> None:
        """Write nodes and used tensors back; types of values are inferred by whoever opens it."""
        used = {value for node in self.nodes for value in node.input}
        for node in self.nodes:
            # They would name this machine's paths: the tracer notes a stack for each node.
            del node.metadata_props[:]
            node.doc_string = ""
        tensors = [tensor for name, tensor in self.stored.items() if name in used]
        for field in (self.proto.node, self.proto.initializer, self.proto.value_info):
            del field[:]
        self.proto.node.extend(self.nodes)
        self.proto.initializer.extend(tensors)


def _in_backbone(node: NodeProto) -> bool:
    """Whether a module named `backbone`, or one inside it, was at work when it was traced."""
    notes = {note.key: note.value for note in node.metadata_props}
    return f"{_BACKBONE}'" in notes.get(_SCOPES, "")


def _halve_attribute(attribute: AttributeProto) -> None:
    """Constants, and the type that a cast goes to."""
    if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
        attribute.i = TensorProto.FLOAT16
    elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
        half = numpy_helper.from_array(_halved(numpy_helper.to_array(attribute.t)))
        attribute.t.CopyFrom(half)


def _half_table(graph: _Graph, node: NodeProto) -> list[NodeProto] | None:
    """Gather of half-precision rows, then widened."""
    table = _table(graph, node)
    if table is None:
        return None
    name, ids, rows = node.input[0], node.input[1], node.output[0]
    half = graph.store(_half(name), _halved(table))
    return [
        helper.make_node("Gather", [half, ids], [f"{rows}.narrow"]),
        _cast(f"{rows}.narrow", rows, TensorProto.FLOAT),
    ]


def _int8_table(graph: _Graph, node: NodeProto) -> list[NodeProto] | None:
    """Gather of int8 rows and of their scales, multiplied."""
    table = _table(graph, node)
    if table is None:
        return None
    name, ids, rows = node.input[0], node.input[1], node.output[0]
    quantised, scales = _quantised(table, axis=1)
    graph.store(f"{name}.int8", quantised)
    graph.store(f"{name}.scales", scales)
    return [
        helper.make_node("Gather", [f"{name}.int8", ids], [f"{rows}.narrow"]),
        helper.make_node("Gather", [f"{name}.scales", ids], [f"{rows}.scales"]),
        _cast(f"{rows}.narrow", f"{rows}.wide", TensorProto.FLOAT),
        helper.make_node("Mul", [f"{rows}.wide", f"{rows}.scales"], [rows]),
    ]


def _table(graph: _Graph, node: NodeProto) -> NDArray[np.float32] | None:
    """The table whose rows the node gathers, if that is what it does."""
    if node.op_type != "Gather" or any(
        entry.name == "axis" and entry.i for entry in node.attribute
    ):
        return None
    table = graph.floats(node.input[0])
    return table if table is not None and table.ndim == 2 else None


def _int8_product(graph: _Graph, node: NodeProto) -> list[NodeProto] | None:
    """The backbone's product with a stored matrix: one scale a column, one scale and floor a token.

    A token's states are floor + scale * bytes, so their product is scale * (bytes @ matrix) + floor
    * (sums of the matrix's columns).
    """
    if node.op_type != "MatMul" or not _in_backbone(node):
        return None
    name, states, product = node.input[1], node.input[0], node.output[0]
    matrix = graph.floats(name)
    if matrix is None or matrix.ndim != 2:
        return None
    quantised, scales = _quantised(matrix, axis=0)
    graph.store(f"{name}.int8", quantised)
    graph.store(f"{name}.scales", scales)
    sums = quantised.sum(axis=0, keepdims=True, dtype=np.float32) * scales
    graph.store(f"{name}.sums", sums)
    return [
        *_quantise_states(graph, states),
        helper.make_node(
            "MatMulInteger", [f"{states}.bytes", f"{name}.int8"], [f"{product}.int32"]
        ),
        _cast(f"{product}.int32", f"{product}.wide", TensorProto.FLOAT),
        helper.make_node("Mul", [f"{product}.wide", f"{name}.scales"], [f"{product}.columns"]),
        helper.make_node("Mul", [f"{product}.columns", f"{states}.scales"], [f"{product}.above"]),
        helper.make_node("Mul", [f"{states}.floors", f"{name}.sums"], [f"{product}.below"]),
        helper.make_node("Add", [f"{product}.above", f"{product}.below"], [product]),
    ]


def _quantise_states(graph: _Graph, states: str) -> list[NodeProto]:
    """Token states (..., width) to bytes, scales and floors (..., 1), once for all their users.

    The bytes are unsigned: only products of unsigned with signed ones are fast in ONNX Runtime.
    Half a step is added before the cast cuts off, so that it rounds.
    """
    if f"{states}.bytes" in graph.made:
        return []
    graph.made.add(f"{states}.bytes")
    graph.store("int8.width", np.array([-1]))
    graph.store("int8.step", np.float32(1 / 255))
    graph.store("int8.half", np.float32(0.5))
    graph.store("int8.smallest", np.float32(_SMALLEST))
    rows = [
        ("ReduceMax", ["", "int8.width"], "tops"),
        ("ReduceMin", ["", "int8.width"], "floors"),
        ("Sub", [".tops", ".floors"], "ranges"),
        ("Mul", [".ranges", "int8.step"], "steps"),
        ("Max", [".steps", "int8.smallest"], "scales"),
        ("Mul", [".scales", "int8.half"], "halves"),
        ("Sub", [".floors", ".halves"], "lows"),
        ("Sub", ["", ".lows"], "heights"),
        ("Div", [".heights", ".scales"], "levels"),
    ]
    nodes = [
        helper.make_node(
            kind,
            [value if value.startswith("int8.") else f"{states}{value}" for value in values],
            [f"{states}.{given}"],
        )
        for kind, values, given in rows
    ]
    return [*nodes, _cast(f"{states}.levels", f"{states}.bytes", TensorProto.UINT8)]


def _quantised(
    values: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Whole numbers in -127..127, and the scales along `axis` that give the values back."""
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scales = (np.maximum(largest, _SMALLEST) / _LEVELS).astype(np.float32)
    return np.rint(values / scales).astype(np.int8), scales


def _half(name: str) -> str:
    return f"{name}.half"


def _halved(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """In half precision; a mask's "minus infinity" becomes the lowest number there is."""
    return np.clip(values, -_HALF_MAX, _HALF_MAX).astype(np.float16)


def _cast(value: str, to: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [value], [to], to=kind)
