"""The batched beam search against the plain one, on trees of any shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.index.tree_beam import (
    PADDING,
    TRANSFORMS,
    Blocks,
    TreeBeam,
    cost_of,
    pack,
    unpack,
)
from tests.support.trees import plain_search, ragged_forest


@given(
    seed=st.integers(0, 2**32 - 1),
    n_labels=st.integers(1, 60),
    n_trees=st.integers(1, 3),
    beam=st.integers(1, 12),
    transform=st.sampled_from(TRANSFORMS),
    path_weight=st.sampled_from([0.0, 0.5, 1.0]),
    coarse=st.booleans(),
)
@settings(max_examples=150)
def test_a_batch_finds_what_a_plain_search_finds(
    seed, n_labels, n_trees, beam, transform, path_weight, coarse
):
    rng = np.random.default_rng(seed)
    forest = ragged_forest(rng, n_labels, n_trees)
    n_items = forest.n_nodes + len(forest.labels)
    table = rng.normal(size=(4, n_items)).astype(np.float32)
    if coarse:
        table = table.round()  # many ties
    tree = TreeBeam(forest, transform, path_weight)

    def score(blocks: Blocks) -> np.ndarray:
        assert (forest.first[blocks.node[blocks.pair]] <= blocks.items).all()
        return table[blocks.query, blocks.items]

    leaves = tree.leaves(score, len(table), beam)
    found = tree.labels(leaves, score)
    for row in range(len(leaves)):
        query, root = row // n_trees, forest.roots[row % n_trees]
        wanted, n_leaves = plain_search(forest, table[query], root, beam, transform, path_weight)
        assert (leaves[row] != PADDING).sum() == n_leaves
        costs, labels = unpack(found[row][found[row] != PADDING])
        assert dict(zip(labels.tolist(), costs.tolist(), strict=True)) == wanted


def test_a_tree_that_is_one_leaf_opens_it() -> None:
    forest = ragged_forest(np.random.default_rng(0), 1, 1)
    tree = TreeBeam(forest, "logistic", 1.0)
    leaves = tree.leaves(lambda blocks: np.zeros(len(blocks.items), np.float32), 3, 1)
    assert leaves.shape == (3, 1)


def test_keys_sort_by_cost_and_then_by_number() -> None:
    costs = np.float32([0.5, 0.25, 0.25, 0.0, -0.0, np.inf])
    numbers = np.array([1, 9, 3, 7, 5, 0])
    assert unpack(np.sort(pack(costs, numbers)))[1].tolist() == [5, 7, 3, 9, 1, 0]
    assert pack(np.float32([np.inf]), np.array([2**31]))[0] < PADDING


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_costs_fall_with_the_score_and_are_never_negative(transform) -> None:
    costs = cost_of(np.linspace(-50, 50, 999, dtype=np.float32), transform)
    assert (np.diff(costs) <= 0).all()
    assert (costs >= 0).all()
