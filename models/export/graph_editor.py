"""Edits an ONNX graph: its nodes in order, and its stored tensors by name.

It can tell the nodes of the transformer's backbone, because the tracer notes each node's module.
models.export.precision and models.export.int8_products decide what replaces a node.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_BACKBONE: Final = "backbone"

Replace: TypeAlias = Callable[["GraphEditor", NodeProto], list[NodeProto] | None]


class GraphEditor:
    """Edits a model's graph in place; `added_values` are the names of values that edits added."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.added_values: set[str] = set()

    def rewrite(self, replace: Replace) -> None:
        """Put the nodes that `replace` returns in each node's place; None keeps the node."""
        nodes: list[NodeProto] = []
        for node in self.nodes:
            replacement = replace(self, node)
            nodes += [node] if replacement is None else replacement
        self.nodes = nodes

    def store(self, name: str, values: NDArray[np.generic] | np.generic) -> str:
        """Store a tensor or a single value under this name; return the name."""
        self.tensors[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def floats(self, name: str) -> NDArray[np.float32] | None:
        """The stored fp32 tensor of this name, None where there is none."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def close(self) -> None:
        """Write the nodes and the tensors that they use back into the model.

        The types of inner values are left out: ONNX Runtime infers them.
        """
        used = {value for node in self.nodes for value in node.input}
        for node in self.nodes:
            # The tracer notes a stack for each node, with paths of this machine.
            del node.metadata_props[:]
            node.doc_string = ""
        tensors = [tensor for name, tensor in self.tensors.items() if name in used]
        for field in (self.proto.node, self.proto.initializer, self.proto.value_info):
            del field[:]
        self.proto.node.extend(self.nodes)
        self.proto.initializer.extend(tensors)


def in_backbone(node: NodeProto) -> bool:
    """Whether the node comes from the module `backbone` or one inside it, by the tracer's notes."""
    notes = {note.key: note.value for note in node.metadata_props}
    return f"{_BACKBONE}'" in notes.get(_SCOPES, "")


def cast(value: str, to: str, kind: int) -> NodeProto:
    """A node that casts `value` to the ONNX type `kind` under the name `to`."""
    return helper.make_node("Cast", [value], [to], to=kind)
