"""Which points reach which node, and the classifiers that are trained on them."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.label_trees.classifiers import FitConfig, fit, reached
from models.label_trees.shape import MassBalance, grow, merge_levels


def clustered(n_points: int = 600, n_labels: int = 40, dim: int = 12):
    """Points near the centre of their one label, and more labels at random."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((n_labels, dim)).astype(np.float32)
    of = rng.integers(n_labels, size=n_points)
    points = centres[of] + 0.2 * rng.standard_normal((n_points, dim)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.zeros((n_points, n_labels), np.float32)
    labels[np.arange(n_points), of] = 1
    labels[rng.random(labels.shape) < 0.01] = 1
    vectors = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    return points, csr_array(labels), vectors


@pytest.mark.parametrize("levels", [1, 3])
def test_a_point_reaches_every_node_above_its_labels_and_no_other(levels):
    _, labels, vectors = clustered()
    shape = merge_levels(grow(vectors, np.ones(40, int), MassBalance(0.0), 3, seed=1), levels)
    paths = reached(shape, labels)
    n_nodes = len(shape.first)
    below = [set() for _ in range(n_nodes)]
    for node in reversed(range(n_nodes)):
        for child in range(shape.first[node], shape.end[node]):
            below[node] |= {int(shape.labels[child])} if shape.leaf[node] else below[child]
    dense, truth = paths.items.toarray() > 0, labels.toarray() > 0
    for node in range(n_nodes):
        assert (dense[:, node] == truth[:, sorted(below[node])].any(axis=1)).all()
    assert (dense[:, n_nodes:] == truth[:, shape.labels]).all()
    for node in range(n_nodes):
        shift = n_nodes if shape.leaf[node] else 0
        assert (paths.parent[shape.first[node] + shift : shape.end[node] + shift] == node).all()


def trained(config: FitConfig, seed: int = 1):
    points, labels, vectors = clustered()
    shape = grow(vectors, np.ones(40, int), MassBalance(0.0), 3, seed=1)
    paths = reached(shape, labels)
    weights = np.zeros((len(paths.parent), points.shape[1]), np.float32)
    bias = np.zeros(len(weights), np.float32)
    fit(points, paths, (1, len(weights)), weights, bias, config, seed)
    return points, paths, weights, bias


def test_children_are_told_apart_by_those_that_reach_their_parent():
    points, paths, weights, bias = trained(FitConfig(epochs=30))
    reach = paths.items.toarray() > 0
    logits = points @ weights.T + bias
    active = reach[:, paths.parent]
    active[:, 0] = False
    right = (logits > 0) == reach
    assert right[active].mean() > 0.87  # labels at random cannot be foretold


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (trained(FitConfig(epochs=2), seed)[2] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_large_penalty_holds_the_weights_where_they_were():
    loose, tight = (
        np.abs(trained(FitConfig(epochs=20, penalty=penalty))[2]).max() for penalty in (0.1, 1e6)
    )
    assert tight < 0.02 * loose


def test_items_that_no_point_reaches_stay_as_they_are():
    points, _, vectors = clustered()
    shape = grow(vectors, np.ones(40, int), MassBalance(0.0), 3, seed=1)
    nothing = csr_array(np.zeros((len(points), 40), np.float32))
    paths = reached(shape, nothing)
    weights = np.ones((len(paths.parent), points.shape[1]), np.float32)
    bias = np.zeros(len(weights), np.float32)
    fit(points, paths, (1, len(weights)), weights, bias, FitConfig(), seed=1)
    assert (weights == 1).all()


def test_only_the_items_named_are_trained_and_the_root_is_none():
    points, labels, vectors = clustered()
    shape = grow(vectors, np.ones(40, int), MassBalance(0.0), 3, seed=1)
    paths = reached(shape, labels)
    weights = np.zeros((len(paths.parent), points.shape[1]), np.float32)
    bias = np.zeros(len(weights), np.float32)
    fit(points, paths, (1, len(shape.first)), weights, bias, FitConfig(epochs=1), seed=1)
    assert weights[1 : len(shape.first)].any(axis=1).all()
    assert not weights[len(shape.first) :].any()
    with pytest.raises(ValueError, match="the root"):
        fit(points, paths, (0, 5), weights, bias, FitConfig(), seed=1)
