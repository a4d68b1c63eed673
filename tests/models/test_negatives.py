"""Negative sampling: nothing forbidden is drawn, and the weighted estimate has no bias."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from models.negatives import (
    HardNegatives,
    balance_weights,
    density_in_pool,
    hard_negatives,
    mine,
    places_in_pool,
    uniform_pool,
)
from models.rng import Rng


def test_pool_is_distinct_sorted_and_cut_to_the_label_count():
    pool = uniform_pool(50, 20, np.random.default_rng(1))
    assert len(pool) == 20
    assert torch.equal(pool, pool.unique())
    assert torch.equal(uniform_pool(5, 20, np.random.default_rng(1)), torch.arange(5))


def test_density_in_pool_puts_each_label_under_its_own_column():
    pool = torch.tensor([2, 5, 9])
    labels = torch.tensor([[9, 4], [-1, 2]])
    density = torch.tensor([[0.7, 0.3], [0.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 0.7], [1.0, 0.0, 0.0]])
    assert torch.equal(density_in_pool(pool, labels, density), expected)


def test_mining_returns_the_nearest_labels_without_positives():
    vectors = np.eye(6, dtype=np.float32)
    queries = np.array([[0.9, 0.8, 0.7, 0, 0, 0], [0, 0, 0, 0.1, 0.2, 0.3]], np.float32)
    positives = csr_array(np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], np.float32))
    labels, scores = mine(vectors, queries, positives, pool=2)
    assert labels.tolist() == [[1, 2], [4, 3]]
    assert scores == pytest.approx(np.array([[0.8, 0.7], [0.2, 0.1]]))


def test_mining_pads_where_too_few_labels_are_left():
    positives = csr_array(np.array([[1, 1, 0]], np.float32))
    labels, scores = mine(np.eye(3, dtype=np.float32), np.ones((1, 3), np.float32), positives, 3)
    assert labels.tolist() == [[2, -1, -1]]
    assert scores[0, 1:].tolist() == [-np.inf, -np.inf]


def test_a_row_without_candidates_draws_nothing_that_counts():
    found = hard_negatives(np.full((1, 2), -1), np.full((1, 2), -np.inf, np.float32), 1.0, 0.0)
    labels, density = found.draw(torch.tensor([0]), 3, torch.Generator().manual_seed(1))
    assert labels.tolist() == [[0, 0, 0]]
    assert density.tolist() == [[0.0, 0.0, 0.0]]


def test_mixture_estimate_is_unbiased_even_with_a_stale_density():
    """Mean over many draws of the weighted sum equals the sum over all labels.

    The density has nothing to do with the values: that is what staleness is. 4,000 draws of a sum
    of about 45 have a standard error near 0.3.
    """
    n_labels, pool_size, n_hard, rounds = 40, 10, 5, 4000
    rng = Rng.from_seed(3)
    values = torch.rand(n_labels, generator=rng.torch) * 2
    hard = HardNegatives(torch.tensor([[3, 7, 11]]), torch.tensor([[0.6, 0.3, 0.1]]))
    hard_count = torch.tensor([[float(n_hard)]])
    total = 0.0
    for _ in range(rounds):
        pool = uniform_pool(n_labels, pool_size, rng.numpy)
        labels, drawn = hard.draw(torch.tensor([0]), n_hard, rng.torch)
        rate = pool_size / n_labels
        in_pool = density_in_pool(pool, hard.labels, hard.density)
        total += float((values[pool] * balance_weights(in_pool, hard_count, rate)).sum())
        total += float((values[labels] * balance_weights(drawn, hard_count, rate)).sum())
    assert total / rounds == pytest.approx(float(values.sum()), abs=1.2)


def test_places_in_pool_say_what_is_not_there():
    places, found = places_in_pool(torch.tensor([4, 8]), torch.tensor([8, 5, 99]))
    assert found.tolist() == [True, False, False]
    assert int(places[0]) == 1
