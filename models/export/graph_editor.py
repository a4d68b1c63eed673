"""An ONNX graph while it is rewritten: nodes in order, stored tensors by name.

It knows which nodes came from the transformer's backbone, for the tracer notes the module of each.
What is rewritten into what is models.export.precision's and models.export.int8_products' affair.
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
    """Edits a model's graph in place; `made` holds the names of values that were added."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
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


def in_backbone(node: NodeProto) -> bool:
    """Whether a module named `backbone`, or one inside it, was at work when it was traced."""
    notes = {note.key: note.value for note in node.metadata_props}
    return f"{_BACKBONE}'" in notes.get(_SCOPES, "")


def cast(value: str, to: str, kind: int) -> NodeProto:
    """The node that gives `value` as another type."""
    return helper.make_node("Cast", [value], [to], to=kind)
