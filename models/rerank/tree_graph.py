"""Turns a LightGBM booster into one `TreeEnsembleRegressor` of ONNX, which the service runs.

LightGBM compares numbers of 64 bits, the graph those of 32. The features are fp32 in both, so a
threshold that is rounded downwards to fp32 decides every one of them alike: no fp32 number lies
between the two.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.errors import TrainingError
from service.atomic import write_atomic
from service.core.rerank.reranker import GRAPH_INPUT, GRAPH_OUTPUT

_OPSET: Final = 17
_ML_OPSET: Final = 3

_IR_VERSION: Final = 8
"""All three are those of ONNX 1.12, which every ONNX Runtime that the service allows can read."""


def write_tree_graph(booster: Any, n_features: int, path: Path) -> None:
    """Write the trees of a `lightgbm.Booster` to `path`, atomically.

    The graph maps features (n, n_features), with NaN for what is missing, to scores (n, 1). Raises
    TrainingError for a split that it cannot say: by categories, or with zero for missing values.
    """
    dumped = booster.dump_model()
    model = tree_graph([tree["tree_structure"] for tree in dumped["tree_info"]], n_features)
    write_atomic(path, lambda temporary: temporary.write_bytes(model.SerializeToString()))


def tree_graph(trees: Sequence[dict[str, Any]], n_features: int) -> onnx.ModelProto:
    """The graph of trees in the form of LightGBM's `dump_model`; raises TrainingError."""
    nodes: dict[str, list[Any]] = {name: [] for name in _NODE_FIELDS}
    leaves: dict[str, list[Any]] = {"treeids": [], "nodeids": [], "weights": []}
    for tree, root in enumerate(trees):
        for number, node, low, high in _numbered(root):
            is_leaf = "leaf_value" in node
            values = _leaf(number) if is_leaf else _split(node, number, low, high)
            for name, value in zip(_NODE_FIELDS, (tree, *values), strict=True):
                nodes[name].append(value)
            if is_leaf:
                leaves["treeids"].append(tree)
                leaves["nodeids"].append(number)
                leaves["weights"].append(float(np.float32(node["leaf_value"])))
    attributes: dict[str, Any] = {f"nodes_{name}": values for name, values in nodes.items()}
    attributes |= {f"target_{name}": values for name, values in leaves.items()}
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        [GRAPH_INPUT],
        [GRAPH_OUTPUT],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
        target_ids=[0] * len(leaves["weights"]),
        **attributes,
    )
    graph = helper.make_graph(
        [ensemble],
        "rerank",
        [helper.make_tensor_value_info(GRAPH_INPUT, TensorProto.FLOAT, ["n", n_features])],
        [helper.make_tensor_value_info(GRAPH_OUTPUT, TensorProto.FLOAT, ["n", 1])],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model


_FINITE: Final = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))
_NODE_FIELDS: Final = (
    *("treeids", "nodeids", "featureids", "modes", "values"),
    *("truenodeids", "falsenodeids", "missing_value_tracks_true"),
)


def _numbered(root: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any], int, int]]:
    """Each node with its number and those of its children, which are higher."""
    waiting, n_nodes = deque([root]), 1
    for number in count():
        if not waiting:
            return
        node = waiting.popleft()
        yield number, node, n_nodes, n_nodes + 1
        if "leaf_value" not in node:
            waiting.extend((node["left_child"], node["right_child"]))
            n_nodes += 2


def _leaf(number: int) -> tuple[Any, ...]:
    return number, 0, "LEAF", 0.0, 0, 0, 0


def _split(node: dict[str, Any], number: int, low: int, high: int) -> tuple[Any, ...]:
    if node["decision_type"] != "<=" or node["missing_type"] == "Zero":
        raise TrainingError(
            f"a tree splits by {node['decision_type']} with missing_type {node['missing_type']}: "
            "train with numbers only, and zero_as_missing=false"
        )
    threshold = float(node["threshold"])
    # Without missing values in training LightGBM reads NaN as 0.
    goes_low = node["default_left"] if node["missing_type"] == "NaN" else threshold >= 0
    value = _downwards(threshold)
    return number, node["split_feature"], "BRANCH_LEQ", value, low, high, int(goes_low)


def _downwards(threshold: float) -> float:
    """The largest finite fp32 number that is at most `threshold`."""
    # A split between missing and not missing has a threshold of 1e300.
    rounded = np.float32(np.clip(threshold, *_FINITE))
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded)
