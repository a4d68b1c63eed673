"""Trees as a graph: the service's scores are the trainer's."""

import numpy as np
import pytest

from models.errors import TrainingError
from models.rerank.tree_graph import tree_graph, write_tree_graph
from service.core.rerank.reranker import OnnxTrees

lightgbm = pytest.importorskip("lightgbm")
N_FEATURES = 6


def booster(seed: int, *, missing: bool = True, **params):
    """Trees that were fitted to noise, some of it missing and some of it in few values."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((600, N_FEATURES)).astype(np.float32)
    rows[:, 1] = rng.integers(-2, 3, 600)
    if missing:
        rows[rng.random(rows.shape) < 0.2] = np.nan
    target = np.nan_to_num(rows[:, 0]) * rows[:, 1].clip(-1, 1) + rng.standard_normal(600)
    settings = {"num_leaves": 15, "min_data_in_leaf": 5, "verbosity": -1, "num_threads": 1}
    data = lightgbm.Dataset(rows, np.nan_to_num(target))
    return lightgbm.train(settings | params, data, 30), rows


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("missing", [True, False])
def test_scores_and_order_are_the_trainers(seed: int, missing: bool, tmp_path) -> None:
    trained, rows = booster(seed, missing=missing)
    edges = [
        value
        for tree in trained.dump_model()["tree_info"]
        for value in thresholds(tree["tree_structure"])
    ]
    # Features on both sides of a threshold, as near as fp32 can say, and missing ones.
    rng = np.random.default_rng(seed)
    near = np.float32(rng.choice(edges, (400, N_FEATURES)))
    near = np.nextafter(near, np.float32(rng.choice([-9, 0, 9], near.shape)))
    near[::3, seed % N_FEATURES] = np.nan
    rows = np.concatenate([rows, near])
    write_tree_graph(trained, N_FEATURES, tmp_path / "rerank.onnx")
    served = OnnxTrees(tmp_path / "rerank.onnx", N_FEATURES)(rows)
    expected = trained.predict(rows, num_threads=1)
    np.testing.assert_allclose(served, expected, atol=1e-5)
    order = np.argsort(-expected, kind="stable")
    assert (np.diff(served[order]) <= 1e-5).all()


def thresholds(node) -> list[float]:
    if "leaf_value" in node:
        return []
    return [
        min(node["threshold"], 1e30),  # 1e300 splits missing values from all others
        *thresholds(node["left_child"]),
        *thresholds(node["right_child"]),
    ]


def test_scores_do_not_depend_on_the_batch(tmp_path) -> None:
    trained, rows = booster(0)
    write_tree_graph(trained, N_FEATURES, tmp_path / "rerank.onnx")
    trees = OnnxTrees(tmp_path / "rerank.onnx", N_FEATURES)
    whole = trees(rows)
    for size in (1, 7, 20, 300):
        parts = [trees(rows[start : start + size]) for start in range(0, len(rows), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_tree_of_one_leaf_is_a_graph_too(tmp_path) -> None:
    path = tmp_path / "rerank.onnx"
    path.write_bytes(tree_graph([{"leaf_value": 0.25}], 2).SerializeToString())
    assert OnnxTrees(path, 2)(np.float32([[0, 1], [2, np.nan]])).tolist() == [0.25, 0.25]


def test_what_the_graph_cannot_say_is_refused() -> None:
    leaves = {"left_child": {"leaf_value": 0.0}, "right_child": {"leaf_value": 1.0}}
    split = {"split_feature": 0, "threshold": 0.5, "default_left": True, **leaves}
    for kind in (
        {"decision_type": "==", "missing_type": "None"},
        {"decision_type": "<=", "missing_type": "Zero"},
    ):
        with pytest.raises(TrainingError, match="train with numbers only"):
            tree_graph([split | kind], 2)
