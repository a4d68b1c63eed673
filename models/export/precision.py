"""A traced fp32 encoder rewritten to fp16 or int8: what is stored, and what is computed in it.

    precision   tables                              the transformer's layers fp16        half
    precision                      half precision int8        int8, one scale a row
    int8 products (models.export.int8_products), rest fp32

Rows gathered from a table are widened, so a bag's arithmetic, pooling, projection and norm are fp32
in every precision.
"""

from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from models.config import Precision
from models.data.tokens import TokenizedTexts
from models.export.graph_editor import GraphEditor, cast, in_backbone
from models.export.int8_products import Int8Products, quantised

_HALF_MAX: Final = 65504.0


def at_precision(
    traced: onnx.ModelProto, precision: Precision, sample: TokenizedTexts
) -> onnx.ModelProto:
    """A copy of the traced graph in this precision, without the tracer's notes.

    int8 finds the channels that it must leave alone on the `sample`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    graph = GraphEditor(model)
    if precision == "fp16":
        _halve_backbone(graph)
        graph.rewrite(_half_table)
    elif precision == "int8":
        graph.rewrite(Int8Products(traced, sample))
        graph.rewrite(_int8_table)
    graph.close()
    return model


def _halve_backbone(graph: GraphEditor) -> None:
    """Store and compute the backbone in half precision, with casts where floats cross over."""
    floats = {
        info.name
        for info in graph.proto.value_info
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    outside = [node for node in graph.nodes if not in_backbone(node)]
    entering = floats & {value for node in outside for value in node.output}
    leaving = floats & {value for node in outside for value in node.input}

    def halve(graph: GraphEditor, node: NodeProto) -> list[NodeProto] | None:
        if not in_backbone(node):
            return None
        before = [_narrow(graph, value) for value in node.input if value in entering]
        after = [cast(_half(v), v, TensorProto.FLOAT) for v in node.output if v in leaving]
        for place, value in enumerate(node.input):
            node.input[place] = _half_of(graph, value, floats)
        for attribute in node.attribute:
            _halve_attribute(attribute)
        for place, value in enumerate(node.output):
            node.output[place] = _half_of(graph, value, floats)
        return [*(step for step in before if step is not None), node, *after]

    graph.rewrite(halve)


def _narrow(graph: GraphEditor, value: str) -> NodeProto | None:
    """The cast of a value that enters the backbone, once."""
    if _half(value) in graph.made:
        return None
    graph.made.add(_half(value))
    return cast(value, _half(value), TensorProto.FLOAT16)


def _half_of(graph: GraphEditor, value: str, floats: set[str]) -> str:
    stored = graph.floats(value)
    if stored is not None:
        return graph.store(_half(value), _halved(stored))
    return _half(value) if value in floats else value


def _halve_attribute(attribute: AttributeProto) -> None:
    """Constants, and the type that a cast goes to."""
    if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
        attribute.i = TensorProto.FLOAT16
    elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
        half = numpy_helper.from_array(_halved(numpy_helper.to_array(attribute.t)))
        attribute.t.CopyFrom(half)


def _half_table(graph: GraphEditor, node: NodeProto) -> list[NodeProto] | None:
    """Gather of half-precision rows, then widened."""
    table = _table(graph, node)
    if table is None:
        return None
    name, ids, rows = node.input[0], node.input[1], node.output[0]
    half = graph.store(_half(name), _halved(table))
    return [
        helper.make_node("Gather", [half, ids], [f"{rows}.narrow"]),
        cast(f"{rows}.narrow", rows, TensorProto.FLOAT),
    ]


def _int8_table(graph: GraphEditor, node: NodeProto) -> list[NodeProto] | None:
    """Gather of int8 rows and of their scales, multiplied."""
    table = _table(graph, node)
    if table is None:
        return None
    name, ids, rows = node.input[0], node.input[1], node.output[0]
    levels, scales = quantised(table, axis=1)
    graph.store(f"{name}.int8", levels)
    graph.store(f"{name}.scales", scales)
    return [
        helper.make_node("Gather", [f"{name}.int8", ids], [f"{rows}.narrow"]),
        helper.make_node("Gather", [f"{name}.scales", ids], [f"{rows}.scales"]),
        cast(f"{rows}.narrow", f"{rows}.wide", TensorProto.FLOAT),
        helper.make_node("Mul", [f"{rows}.wide", f"{rows}.scales"], [rows]),
    ]


def _table(graph: GraphEditor, node: NodeProto) -> NDArray[np.float32] | None:
    """The table whose rows the node gathers, if that is what it does."""
    first_axis = all(entry.i == 0 for entry in node.attribute if entry.name == "axis")
    if node.op_type != "Gather" or not first_axis:
        return None
    table = graph.floats(node.input[0])
    return table if table is not None and table.ndim == 2 else None


def _half(name: str) -> str:
    return f"{name}.half"


def _halved(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """In half precision; a mask's "minus infinity" becomes the lowest number there is."""
    return np.clip(values, -_HALF_MAX, _HALF_MAX).astype(np.float16)
