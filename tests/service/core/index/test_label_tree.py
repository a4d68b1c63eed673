"""What the contract cannot say of label trees: their scores, their forests, their broken files."""

import json
from pathlib import Path

import numpy as np
import pytest

from service.bundle.manifest import IndexInfo
from service.core.index.label_tree import (
    ABOUT_FILE,
    BIAS_FILE,
    CHILDREN_FILE,
    FILES,
    LABELS_FILE,
    WEIGHTS_FILE,
    open_label_tree,
)
from service.core.index.tree_beam import Forest, cost_of
from service.errors import BundleMismatch
from tests.support.trees import plain_search, ragged_forest, write_tree

DIM, N_LABELS, N_QUERIES = 8, 90, 40
EFFORTS = {"one": {"beam": 1}, "few": {"beam": 4}, "most": {"beam": 30}, "exact": {}}
INFO = IndexInfo(
    kind="label-tree", files=list(FILES), metric="probability", params={}, n_rows=N_LABELS
)


def made(folder: Path, n_trees: int, path_weight: float = 1.0) -> tuple[Forest, np.ndarray]:
    """A forest on disk, and the raw scores of all queries with all items."""
    rng = np.random.default_rng(7)
    forest = ragged_forest(rng, N_LABELS, n_trees)
    weights = rng.normal(size=(forest.n_nodes + len(forest.labels), DIM)).astype(np.float32)
    bias = rng.normal(size=len(weights)).astype(np.float32)
    write_tree(folder, forest, weights, bias, path_weight=path_weight)
    return forest, QUERIES @ weights.T + bias


QUERIES = np.random.default_rng(8).normal(size=(N_QUERIES, DIM)).astype(np.float32)


def path_costs(forest: Forest, scores: np.ndarray, path_weight: float) -> np.ndarray:
    """Cost of every label in every tree with nothing pruned, (n, n_trees, n_labels)."""
    own = cost_of(scores, "logistic").astype(np.float64)
    costs = np.empty((len(scores), forest.n_trees, N_LABELS))
    for tree, root in enumerate(forest.roots):
        stack = [(root, np.zeros(len(scores)))]
        while stack:
            node, path = stack.pop()
            for child in range(forest.first[node], forest.end[node]):
                if forest.leaf[node]:
                    label = forest.labels[child - forest.n_nodes]
                    costs[:, tree, label] = own[:, child] + path_weight * path
                else:
                    stack.append((child, path + own[:, child]))
    return costs


@pytest.mark.parametrize("path_weight", [0.0, 1.0])
@pytest.mark.parametrize("n_trees", [1, 3])
def test_without_a_beam_every_label_gets_its_probability(tmp_path, n_trees, path_weight):
    forest, scores = made(tmp_path, n_trees, path_weight)
    index = open_label_tree(tmp_path, INFO, DIM, EFFORTS)
    hits = index.search(QUERIES, N_LABELS, "exact")
    expected = np.exp(-path_costs(forest, scores, path_weight)).mean(axis=1)
    np.testing.assert_allclose(
        hits.scores, np.take_along_axis(expected, hits.rows, axis=1), rtol=1e-4
    )
    assert (np.sort(hits.rows, axis=1) == np.arange(N_LABELS)).all()


@pytest.mark.parametrize("effort", ["one", "few", "most"])
def test_one_tree_answers_as_the_plain_search(tmp_path, effort):
    forest, scores = made(tmp_path, 1)
    index = open_label_tree(tmp_path, INFO, DIM, EFFORTS)
    hits = index.search(QUERIES, 1, effort)
    for query in range(N_QUERIES):
        found, _ = plain_search(forest, scores[query], 0, EFFORTS[effort]["beam"], "logistic", 1.0)
        assert hits.rows[query, 0] == min(found, key=lambda label: (found[label], label))


@pytest.mark.parametrize(("path_weight", "missed_is_zero"), [(1.0, True), (0.0, False)])
def test_a_forest_averages_what_its_trees_say(tmp_path, path_weight, missed_is_zero):
    forest, scores = made(tmp_path, 3, path_weight)
    index = open_label_tree(tmp_path, INFO, DIM, EFFORTS)
    hits = index.search(QUERIES, 5, "few")
    for query in range(N_QUERIES):
        said = {}
        for root in forest.roots:
            found, _ = plain_search(forest, scores[query], root, 4, "logistic", path_weight)
            for label, cost in found.items():
                said.setdefault(label, []).append(np.exp(-float(cost)))
        if len(said) < 5:
            continue  # then the beam is widened
        mean = {
            label: sum(each) / (3 if missed_is_zero else len(each)) for label, each in said.items()
        }
        best = sorted(mean, key=lambda label: -mean[label])[:5]
        np.testing.assert_allclose(hits.scores[query], [mean[label] for label in best], rtol=1e-4)


def test_equal_labels_come_in_the_order_of_their_rows(tmp_path):
    forest = ragged_forest(np.random.default_rng(1), N_LABELS, 1)
    n_items = forest.n_nodes + N_LABELS
    write_tree(
        tmp_path,
        forest,
        np.zeros((n_items, DIM), np.float32),
        np.zeros(n_items, np.float32),
        path_weight=0.0,
    )
    index = open_label_tree(tmp_path, INFO, DIM, EFFORTS)
    rows = index.search(QUERIES, 20, "exact").rows
    assert (rows == np.arange(20)).all()


def test_a_beam_that_reaches_too_few_labels_is_widened_to_the_same_answer_for_any_batch(tmp_path):
    made(tmp_path, 2)
    index = open_label_tree(tmp_path, INFO, DIM, EFFORTS)
    together = index.search(QUERIES, 60, "one")
    assert together.rows.shape == (N_QUERIES, 60)
    for query in range(N_QUERIES):
        alone = index.search(QUERIES[query : query + 1], 60, "one")
        np.testing.assert_array_equal(alone.rows[0], together.rows[query])
        np.testing.assert_array_equal(alone.scores[0], together.scores[query])


def test_hopeless_scores_keep_their_order_where_probabilities_are_zero(tmp_path):
    forest = ragged_forest(np.random.default_rng(1), N_LABELS, 1)
    n_items = forest.n_nodes + N_LABELS
    bias = np.zeros(n_items, np.float32)
    bias[forest.n_nodes :] = -1000 - forest.labels
    write_tree(tmp_path, forest, np.zeros((n_items, DIM), np.float32), bias, path_weight=0.0)
    hits = open_label_tree(tmp_path, INFO, DIM, EFFORTS).search(QUERIES, 20, "exact")
    assert (hits.rows == np.arange(20)).all()
    assert (hits.scores == 0).all()


@pytest.mark.parametrize(("dim", "n_rows"), [(DIM + 1, N_LABELS), (DIM, N_LABELS + 1)])
def test_another_width_or_number_of_labels_is_refused(tmp_path, dim, n_rows):
    made(tmp_path, 1)
    info = INFO.model_copy(update={"n_rows": n_rows})
    with pytest.raises(BundleMismatch, match=f"{n_rows} of {dim}"):
        open_label_tree(tmp_path, info, dim, EFFORTS)


def spoil(folder: Path, name: str, change) -> None:
    array = np.load(folder / name)
    np.save(folder / name, change(array))


def set_at(place, value):
    def change(array):
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (BIAS_FILE, lambda a: a[:-1], "rows of weights"),
        (WEIGHTS_FILE, lambda a: a.astype(np.float64), "float64"),
        (WEIGHTS_FILE, lambda a: np.asfortranarray(a), "a table of float32 in C order"),
        (LABELS_FILE, set_at(0, 5), "every label once"),
        (LABELS_FILE, lambda a: a[:-1], "rows of weights"),
        (CHILDREN_FILE, lambda a: a[:, :1], "1 columns"),
        (CHILDREN_FILE, set_at((3, 0), 0), "do not come after it"),
        (CHILDREN_FILE, set_at((0, 1), 10**6), "do not come after it"),
        (CHILDREN_FILE, set_at((0, 1), 3), "not the child of exactly one"),
    ],
)
def test_a_broken_tree_is_refused_before_it_is_searched(tmp_path, name, change, says):
    made(tmp_path, 1)
    spoil(tmp_path, name, change)
    with pytest.raises(BundleMismatch, match=says):
        open_label_tree(tmp_path, INFO, DIM, EFFORTS)


@pytest.mark.parametrize(
    "change",
    [
        {"transform": "softmax"},
        {"path_weight": 2.0},
        {"path_weight": "much"},
        {"roots": []},
        {"roots": [1.5]},
        {"roots": [10**6]},
        {"roots": [1]},
    ],
)
def test_a_description_that_this_code_does_not_know_is_refused(tmp_path, change):
    made(tmp_path, 1)
    about = json.loads((tmp_path / ABOUT_FILE).read_text())
    (tmp_path / ABOUT_FILE).write_text(json.dumps(about | change))
    with pytest.raises(BundleMismatch):
        open_label_tree(tmp_path, INFO, DIM, EFFORTS)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    made(tmp_path, 1)
    (tmp_path / name).unlink()
    with pytest.raises(BundleMismatch, match=name):
        open_label_tree(tmp_path, INFO, DIM, EFFORTS)
