"""Negative sampling: nothing forbidden is drawn, and the weighted estimate has no bias."""

import faiss
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from models.config import MethodConfig
from models.rng import Rng
from models.training import negatives
from models.training.negatives import (
    HardNegatives,
    build_index,
    density_in_pool,
    hard_negatives,
    mine,
    places_in_pool,
    uniform_pool,
    weigh,
)


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
    found = hard_negatives(torch.full((1, 2), -1), torch.full((1, 2), -torch.inf), 1.0, 0.0)
    labels, density = found.draw(torch.tensor([0]), 3, torch.Generator().manual_seed(1))
    assert labels.tolist() == [[0, 0, 0]]
    assert density.tolist() == [[0.0, 0.0, 0.0]]


def test_density_is_proportional_to_the_gradient_that_a_label_gives():
    """sigmoid(2 * 0 + 0) = 1/2 and sigmoid(2 * ln 3 / 2) = 3/4: shares 2/5 and 3/5."""
    scores = torch.tensor([[0.0, np.log(3) / 2, -torch.inf]])
    found = hard_negatives(torch.tensor([[4, 2, -1]]), scores, 2.0, 0.0)
    assert found.density[0].tolist() == pytest.approx([0.4, 0.6, 0.0])


def test_nearest_are_the_first_candidates_and_their_densities():
    hard = HardNegatives(
        torch.tensor([[3, 7, 11], [5, -1, -1]]), torch.tensor([[0.6, 0.3, 0.1]] * 2)
    )
    labels, density = hard.nearest(torch.tensor([1, 0]), 2)
    assert labels.tolist() == [[5, 0], [3, 7]]
    assert density.tolist() == pytest.approx(np.array([[0.6, 0.3], [0.6, 0.3]]))


WEIGHED = {
    "balance": ([2.5, 0.0], [1.0, 0.625]),
    "unit": ([1.0, 0.0], [1.0, 1.0]),
    "capped": ([2.0, 0.0], [1.0, 0.625]),
    "self-normalised": ([4.8485, 0.0], [1.9394, 1.2121]),
}


@pytest.mark.parametrize("mode", list(WEIGHED))
def test_weights_of_a_hand_worked_example(mode):
    """Ten labels, a pool of four (rate 0.4), three hard draws, densities 0.2 and 0.4.

    Balance: 1 / (3 * 0 + 0.4) = 2.5; 1 / (3 * 0.2 + 0.4) = 1; 1 / (3 * 0.4 + 0.4) = 0.625. The
    pool's second label is no negative. Self-normalised with 8 negatives of the ten labels: times
    8 / (2.5 + 1 + 0.625).
    """
    config = MethodConfig(weights=mode, weight_cap=2.0)
    in_pool = (torch.tensor([[0.0, 0.2]]), torch.tensor([[1.0, 0.0]]))
    drawn = (torch.tensor([[0.2, 0.4]]), torch.ones(1, 2))
    found = weigh(config, [in_pool, drawn], torch.tensor([[3.0]]), 4, 10, torch.tensor([[8.0]]))
    assert [weights[0].tolist() for weights in found] == [
        pytest.approx(expected, rel=1e-4) for expected in WEIGHED[mode]
    ]


def test_mips_s_weighs_all_negatives_alike_whatever_the_mode():
    drawn = [(torch.tensor([[0.5]]), torch.ones(1, 1)), (torch.tensor([[0.0]]), torch.zeros(1, 1))]
    found = weigh(
        MethodConfig(kind="mips-s"), drawn, torch.tensor([[3.0]]), 4, 10, torch.tensor([[8.0]])
    )
    assert [weights.tolist() for weights in found] == [[[1.0]], [[0.0]]]


def test_weights_without_a_pool_are_finite_and_come_from_the_draws_alone():
    drawn = [
        (torch.empty(2, 0), torch.empty(2, 0)),
        (torch.tensor([[0.5], [0.0]]), torch.ones(2, 1)),
    ]
    found = weigh(MethodConfig(), drawn, torch.tensor([[4.0], [0.0]]), 0, 10, torch.ones(2, 1))
    assert found[1].tolist() == [[0.5], [0.0]]


def mean_estimate(mode, rounds=4000):
    """Mean over draws of the weighted sum of fixed values, and the sum over all labels.

    The density has nothing to do with the values: that is what staleness is. 4,000 draws of a sum
    of about 45 have a standard error near 0.3.
    """
    n_labels, pool_size, n_hard = 40, 10, 5
    rng = Rng.from_seed(3)
    values = torch.rand(n_labels, generator=rng.torch) * 2
    hard = HardNegatives(torch.tensor([[3, 7, 11]]), torch.tensor([[0.6, 0.3, 0.1]]))
    config = MethodConfig(weights=mode)
    sums, weight_sums = [], []
    for _ in range(rounds):
        pool = uniform_pool(n_labels, pool_size, rng.numpy)
        labels, density = hard.draw(torch.tensor([0]), n_hard, rng.torch)
        in_pool = density_in_pool(pool, hard.labels, hard.density)
        drawn = [(in_pool, torch.ones_like(in_pool)), (density, torch.ones_like(density))]
        n_drawn, n_allowed = torch.tensor([[float(n_hard)]]), torch.tensor([[n_labels]])
        weights = weigh(config, drawn, n_drawn, pool_size, n_labels, n_allowed)
        picked = torch.cat([pool, labels[0]])
        sums.append(float((values[picked] * torch.cat(weights, dim=1)[0]).sum()))
        weight_sums.append(float(torch.cat(weights, dim=1).sum()))
    return np.array(sums), np.array(weight_sums), float(values.sum())


def test_balance_weights_give_an_unbiased_estimate_even_with_a_stale_density():
    sums, _, expected = mean_estimate("balance")
    assert sums.mean() == pytest.approx(expected, abs=4 * sums.std() / np.sqrt(len(sums)))


def test_unit_weights_do_not():
    sums, _, expected = mean_estimate("unit")
    assert sums.mean() < expected / 2


def test_self_normalised_weights_of_a_query_sum_to_the_number_of_its_negatives():
    _, weight_sums, _ = mean_estimate("self-normalised", rounds=20)
    assert weight_sums == pytest.approx(40)


def test_places_in_pool_say_what_is_not_there():
    places, found = places_in_pool(torch.tensor([4, 8]), torch.tensor([8, 5, 99]))
    assert found.tolist() == [True, False, False]
    assert int(places[0]) == 1


def test_an_empty_pool_holds_nothing():
    assert len(uniform_pool(50, 0, np.random.default_rng(1))) == 0
    _, found = places_in_pool(torch.empty(0, dtype=torch.long), torch.tensor([[3, -1]]))
    assert found.tolist() == [[False, False]]


def test_exact_and_index_search_agree_where_labels_are_few():
    generator = np.random.default_rng(2)
    vectors = generator.standard_normal((300, 8), np.float32)
    queries = generator.standard_normal((20, 8), np.float32)
    positives = csr_array((generator.random((20, 300)) < 0.02).astype(np.float32))
    exact, index = (mine(vectors, queries, positives, 30, exact=exact) for exact in (True, False))
    assert (exact[0] == index[0]).all()
    assert (exact[1] == index[1]).all()


def test_many_labels_are_searched_by_parts_unless_exact_search_is_asked_for(monkeypatch):
    monkeypatch.setattr(negatives, "_EXACT_BELOW", 100)
    generator = np.random.default_rng(3)
    centres = generator.standard_normal((40, 32), np.float32)
    vectors = np.repeat(centres, 50, axis=0)
    vectors += 0.3 * generator.standard_normal(vectors.shape, np.float32)
    parts, flat = build_index(vectors), build_index(vectors, exact=True)
    assert isinstance(flat, faiss.IndexFlat)
    assert not isinstance(parts, faiss.IndexFlat)
    found, truth = (index.search(centres, 10)[1].tolist() for index in (parts, flat))
    shares = [len(set(ours) & set(theirs)) / 10 for ours, theirs in zip(found, truth, strict=True)]
    assert np.mean(shares) > 0.8
