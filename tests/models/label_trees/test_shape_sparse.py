"""Trees over sparse features, from their shape to what a beam finds in them."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.label_trees.shape import MassBalance, grow, label_vectors
from models.methods.tree import plant
from service.core.index.tree_beam import TreeBeam
from tests.support.sparse_trees import NEVER, Chunks, SparseTree, fit_svms


def test_svms_find_labels_whose_words_are_their_own():
    pytest.importorskip("sklearn", reason="the extra peers is not installed")
    rng = np.random.default_rng(1)
    n_points, n_labels = 800, 60
    of = rng.integers(n_labels - 1, size=n_points)  # the last label has no point
    words = np.zeros((n_points, 200), np.float32)
    words[np.arange(n_points), of] = 1.0
    words[np.arange(n_points), 60 + of // 10] = 0.7  # labels come in tens
    words[np.arange(n_points), 100 + rng.integers(100, size=n_points)] = 0.5
    points = csr_array(words / np.linalg.norm(words, axis=1, keepdims=True))
    labels = csr_array(
        (np.ones(n_points, np.float32), (np.arange(n_points), of)), shape=(n_points, n_labels)
    )
    shape = grow(label_vectors(points, labels), np.bincount(of, minlength=n_labels),
                 MassBalance(0.0), 8, seed=1)  # fmt: skip
    weights, bias = fit_svms(points, shape, labels)
    assert (np.abs(weights.data) >= 0.1).all()
    slot = len(shape.first) + int(np.flatnonzero(shape.labels == n_labels - 1)[0])
    assert bias[slot] == np.float32(NEVER)
    forest = plant([shape])
    tree = SparseTree(TreeBeam(forest, "l3-hinge", 1.0), Chunks.of(weights, bias, forest))
    few, every = (tree.search(points, beam).toarray() for beam in (3, 100))
    assert (few.argmax(axis=1) == of).mean() > 0.97
    assert ((few == 0) | (few == every)).all()
    assert ((every > 0).sum(axis=1) >= (few > 0).sum(axis=1)).all()
