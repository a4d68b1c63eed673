"""Rewrites a traced fp32 encoder to fp16 or int8.

    precision   tables                  the transformer's layers
    fp16        fp16                    fp16
    int8        int8, one scale a row   int8 products (models.export.int8_products), rest fp32

The graph casts rows of a table to fp32, so a bag's sums, pooling, projection and norm are fp32 in
every precision.
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

_HALF_MAX: Final = 65504.0  # largest finite fp16 (IEEE 754)


def at_precision(
    traced: onnx.ModelProto, precision: Precision, sample: TokenizedTexts
) -> onnx.ModelProto:
    """Return a copy of the traced graph in this precision, without the tracer's notes.

    For int8 the `sample` shows which channels must stay in fp32.
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
    """Rewrite the backbone to fp16, with casts of the values that enter and leave it."""
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
    """A node that casts a value entering the backbone to fp16; None where the graph has it."""
    if _half(value) in graph.added_values:
        return None
    graph.added_values.add(_half(value))
    return cast(value, _half(value), TensorProto.FLOAT16)


def _half_of(graph: GraphEditor, value: str, floats: set[str]) -> str:
    tensor = graph.floats(value)
    if tensor is not None:
        return graph.store(_half(value), _to_half(tensor))
    return _half(value) if value in floats else value


def _halve_attribute(attribute: AttributeProto) -> None:
    """Change an attribute that is an fp32 constant, or the target type of a cast, to fp16."""
    if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
        attribute.i = TensorProto.FLOAT16
    elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
        half = numpy_helper.from_array(_to_half(numpy_helper.to_array(attribute.t)))
        attribute.t.CopyFrom(half)


def _half_table(graph: GraphEditor, node: NodeProto) -> list[NodeProto] | None:
    """Replace a read of a table's rows by a read of fp16 rows and a cast to fp32."""
    table = _table(graph, node)
    if table is None:
        return None
    name, ids, rows = node.input[0], node.input[1], node.output[0]
    half = graph.store(_half(name), _to_half(table))
    return [
        helper.make_node("Gather", [half, ids], [f"{rows}.narrow"]),
        cast(f"{rows}.narrow", rows, TensorProto.FLOAT),
    ]


def _int8_table(graph: GraphEditor, node: NodeProto) -> list[NodeProto] | None:
    """Replace a read of a table's rows by reads of int8 rows and their scales, and a product."""
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
    """The fp32 table whose rows the node reads; None for any other node."""
    first_axis = all(entry.i == 0 for entry in node.attribute if entry.name == "axis")
    if node.op_type != "Gather" or not first_axis:
        return None
    table = graph.floats(node.input[0])
    return table if table is not None and table.ndim == 2 else None


def _half(name: str) -> str:
    return f"{name}.half"


def _to_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to fp16. A mask's "minus infinity" becomes the lowest finite number."""
    return np.clip(values, -_HALF_MAX, _HALF_MAX).astype(np.float16)
