"""Rewrites the backbone's products with stored matrices to int8, with a scale for every token.

ONNX Runtime's own dynamic quantisation has one scale for all activations of a batch. An answer
would then depend on the rest of its batch, and a few large channels would coarsen all others. Here
every token has a scale and a floor of its own. Channels that are loud on a sample are multiplied in
fp32 beside the rest (docs/decisions/0009). Mixed products: Dettmers et al., 2022 (LLM.int8()).
"""

from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from models.data.tokens import TokenizedTexts
from models.export.graph_editor import GraphEditor, cast, in_backbone
from service.core.encoding.encoder import ATTENTION_MASK, INPUT_IDS, open_session

# docs/decisions/0009 chose these three and measured the result.
SAMPLE_TEXTS: Final = 256
LOUD: Final = 3.0
"""A channel is loud if its largest value is over this many times that of the median channel."""
MOST_LOUD: Final = 8
_BATCH_TOKENS = 4096  # with padding; a choice: more tokens take more memory
_LEVELS: Final = 127.0  # largest int8 that has its negative
_MIN_SIZE: Final = 1e-9
"""Least magnitude of the values of a scale, so that nothing divides by zero."""


class Int8Products:
    """Replaces each product in a call of GraphEditor.rewrite; finds loud channels on `sample`."""

    def __init__(self, traced: onnx.ModelProto, sample: TokenizedTexts) -> None:
        self._largest = largest_by_channel(traced, sample)

    def __call__(self, graph: GraphEditor, node: NodeProto) -> list[NodeProto] | None:
        """Return nodes that compute states @ matrix as a sum of two; None for any other node.

        A token's quiet states are floor + scale * bytes. The first summand is in int8: scale *
        (bytes @ quiet matrix). The second is in fp32: loud states @ their rows of the matrix +
        floor * (column sums of the quiet matrix).
        """
        matrix = stored_matrix(graph, node)
        if matrix is None:
            return None
        name, states, product = node.input[1], node.input[0], node.output[0]
        loud = loud_channels(self._largest[states])
        quiet = matrix.copy()
        quiet[loud] = 0.0
        levels, scales = quantised(quiet, axis=0)
        sums = levels.sum(axis=0, keepdims=True, dtype=np.float32) * scales
        # Layers may share a matrix, as in ALBERT, each with loud channels of its own.
        stored = ".".join([name, *map(str, loud)])
        graph.store(f"{stored}.int8", levels)
        graph.store(f"{stored}.scales", scales)
        graph.store(f"{stored}.exact", np.concatenate([sums, matrix[loud]]))
        return [
            *_quantise_states(graph, states, loud, len(matrix)),
            helper.make_node(
                "MatMulInteger", [f"{states}.bytes", f"{stored}.int8"], [f"{product}.int32"]
            ),
            cast(f"{product}.int32", f"{product}.wide", TensorProto.FLOAT),
            helper.make_node(
                "Mul", [f"{product}.wide", f"{stored}.scales"], [f"{product}.columns"]
            ),
            helper.make_node(
                "Mul", [f"{product}.columns", f"{states}.scales"], [f"{product}.quiet"]
            ),
            helper.make_node("MatMul", [f"{states}.exact", f"{stored}.exact"], [f"{product}.loud"]),
            helper.make_node("Add", [f"{product}.quiet", f"{product}.loud"], [product]),
        ]


def stored_matrix(graph: GraphEditor, node: NodeProto) -> NDArray[np.float32] | None:
    """The stored matrix (width, n) of a product in the backbone; None for any other node."""
    if node.op_type != "MatMul" or not in_backbone(node):
        return None
    matrix = graph.floats(node.input[1])
    return matrix if matrix is not None and matrix.ndim == 2 else None


def loud_channels(largest: NDArray[np.float32]) -> NDArray[np.int64]:
    """The loud channels, loudest first, at most MOST_LOUD; `largest` (width,) are magnitudes.

    >>> loud_channels(np.array([1.0, 9.0, 1.1, 0.9, 30.0], np.float32)).tolist()
    [4, 1]
    """
    loudest = np.argsort(-largest, kind="stable")[:MOST_LOUD]
    return loudest[largest[loudest] > LOUD * np.median(largest)]


def largest_by_channel(
    traced: onnx.ModelProto, sample: TokenizedTexts
) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude (width,) on the sample of every channel, by the states' names."""
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    graph = GraphEditor(model)
    widths: dict[str, int] = {}
    for node in graph.nodes:
        matrix = stored_matrix(graph, node)
        if matrix is not None:
            widths[node.input[0]] = len(matrix)
    if not widths:
        return {}
    graph.store("sample.first", np.array([0]))
    for states, width in widths.items():
        graph.store(f"{states}.flat", np.array([-1, width]))
        graph.nodes += [
            helper.make_node("Abs", [states], [f"{states}.sizes"]),
            helper.make_node("Reshape", [f"{states}.sizes", f"{states}.flat"], [f"{states}.rows"]),
            helper.make_node(
                "ReduceMax", [f"{states}.rows", "sample.first"], [f"{states}.top"], keepdims=0
            ),
        ]
        graph.proto.output.append(
            helper.make_tensor_value_info(f"{states}.top", TensorProto.FLOAT, [width])
        )
    graph.close()
    return _run_on(model, [*widths], sample.take(np.arange(min(SAMPLE_TEXTS, len(sample)))))


def _run_on(
    model: onnx.ModelProto, values: list[str], sample: TokenizedTexts
) -> dict[str, NDArray[np.float32]]:
    session = open_session(model.SerializeToString(), "cpu", torch.get_num_threads())
    largest: dict[str, NDArray[np.float32]] = {}
    for rows in sample.batches_by_length(_BATCH_TOKENS):
        batch = sample.batch(rows)
        feeds: dict[str, Any] = {INPUT_IDS: batch.ids, ATTENTION_MASK: batch.mask}
        outputs = session.run([f"{value}.top" for value in values], feeds)
        for value, row in zip(values, outputs, strict=True):
            largest[value] = np.maximum(largest.get(value, 0.0), row)
    return largest


def _quantise_states(
    graph: GraphEditor, states: str, loud: NDArray[np.int64], width: int
) -> list[NodeProto]:
    """Return nodes that quantise token states (..., width); none where the graph has them already.

    They give bytes (..., width), scales (..., 1), and the fp32 part (..., 1 + loud channels) with
    the floors first. Bytes are unsigned, because ONNX Runtime is fast only at products of unsigned
    with signed bytes. The cast cuts off, so half a step is added before it to make it round.
    """
    if f"{states}.bytes" in graph.added_values:
        return []
    graph.added_values.add(f"{states}.bytes")
    graph.store("int8.width", np.array([-1]))
    graph.store("int8.step", np.float32(1 / 255))
    graph.store("int8.half", np.float32(0.5))
    graph.store("int8.smallest", np.float32(_MIN_SIZE))

    def step(kind: str, values: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, values, [f"{states}.{output}"], **attributes)

    source, floors, first = states, f"{states}.floors", []
    exact = [floors]
    if len(loud):
        mask = np.ones(width, np.float32)
        mask[loud] = 0.0
        graph.store(f"{states}.mask", mask)
        graph.store(f"{states}.channels", loud)
        first = [
            step("Mul", [states, f"{states}.mask"], "quiet"),
            step("Gather", [states, f"{states}.channels"], "loud", axis=-1),
        ]
        source = f"{states}.quiet"
        exact.append(f"{states}.loud")
    return [
        *first,
        step("ReduceMax", [source, "int8.width"], "tops"),
        step("ReduceMin", [source, "int8.width"], "floors"),
        step("Concat", exact, "exact", axis=-1),
        step("Sub", [f"{states}.tops", floors], "ranges"),
        step("Mul", [f"{states}.ranges", "int8.step"], "steps"),
        step("Max", [f"{states}.steps", "int8.smallest"], "scales"),
        step("Mul", [f"{states}.scales", "int8.half"], "halves"),
        step("Sub", [floors, f"{states}.halves"], "lows"),
        step("Sub", [source, f"{states}.lows"], "heights"),
        step("Div", [f"{states}.heights", f"{states}.scales"], "levels"),
        cast(f"{states}.levels", f"{states}.bytes", TensorProto.UINT8),
    ]


def quantised(
    values: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise values to int8 in -127..127; numbers times scales are about the values.

    The scales have length 1 along `axis`.
    """
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scales = (np.maximum(largest, _MIN_SIZE) / _LEVELS).astype(np.float32)
    return np.rint(values / scales).astype(np.int8), scales
