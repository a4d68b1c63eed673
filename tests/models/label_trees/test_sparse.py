"""Chunked masked products against plain sparse ones, and the sparse arm from end to end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from models.label_trees.shape import MassBalance, grow, label_vectors
from models.label_trees.sparse import NEVER, Chunks, ChunkScorer, SparseTree, fit_svms
from models.methods.tree import plant
from service.core.index.tree_beam import Blocks, TreeBeam
from tests.support.trees import ragged_forest


def sparse(rng: np.random.Generator, n: int, width: int, density: float) -> csr_array:
    return csr_array(random_array((n, width), density=density, rng=rng, dtype=np.float32))


@given(
    seed=st.integers(0, 2**32 - 1),
    n_trees=st.integers(1, 2),
    density=st.sampled_from([0.0, 0.05, 0.4]),
)
@settings(max_examples=60, deadline=None)
def test_chunked_products_are_plain_products(seed, n_trees, density):
    rng = np.random.default_rng(seed)
    forest = ragged_forest(rng, 40, n_trees)
    n_items, width = forest.n_nodes + len(forest.labels), 30
    weights = sparse(rng, n_items, width, 0.3)
    bias = rng.normal(size=n_items).astype(np.float32)
    queries = sparse(rng, 6, width, density)
    plain = (queries @ weights.T).toarray() + bias
    scorer = ChunkScorer(queries, Chunks.of(weights, bias, forest))
    # Any pairs, in any order, as different searches would ask for them.
    query = np.sort(rng.integers(6, size=25))
    node = rng.integers(forest.n_nodes, size=25)
    counts = forest.end[node] - forest.first[node]
    pair = np.repeat(np.arange(25), counts)
    items = np.concatenate([np.arange(forest.first[n], forest.end[n]) for n in node])
    blocks = Blocks(query[pair], items, pair, node)
    np.testing.assert_allclose(scorer(blocks), plain[query[pair], items], rtol=1e-5, atol=1e-5)


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


def test_a_node_that_all_points_reach_is_certain_and_one_that_none_does_never():
    pytest.importorskip("sklearn", reason="the extra peers is not installed")
    points = csr_array(np.eye(6, dtype=np.float32))
    labels = np.zeros((6, 4), np.float32)
    labels[:, 0] = 1
    labels[:3, 1] = 1
    shape = grow(np.eye(4, dtype=np.float32), np.ones(4, int), MassBalance(0.0), 4, seed=1)
    weights, bias = fit_svms(points, shape, csr_array(labels))
    assert bias[1:].tolist()[0] == 1.0
    assert bias[3:].tolist() == [NEVER, NEVER]
    assert weights[2].nnz > 0
