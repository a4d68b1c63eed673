"""The losses against slow obvious twins."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.losses import full_bce, sampled_bce


def naive_bce(logits: list[list[float]], positives: list[set[int]]) -> float:
    total = 0.0
    for row, wanted in zip(logits, positives, strict=True):
        for label, logit in enumerate(row):
            probability = 1 / (1 + math.exp(-logit))
            total -= math.log(probability if label in wanted else 1 - probability)
    return total / len(logits)


def test_full_bce_of_a_hand_worked_example():
    """One query, two labels at logit 0: -log(1/2) for the positive and for the negative."""
    loss = full_bce(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([1]))
    assert math.isclose(float(loss), 2 * math.log(2), rel_tol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 7))
def test_full_bce_matches_the_naive_twin(seed, n, n_labels):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, n_labels, generator=generator)
    truth = torch.rand(n, n_labels, generator=generator) < 0.4
    rows, labels = truth.nonzero(as_tuple=True)
    expected = naive_bce(logits.tolist(), [set(row.nonzero()[:, 0].tolist()) for row in truth])
    assert math.isclose(float(full_bce(logits, rows, labels)), expected, rel_tol=1e-4)


def test_sampled_bce_with_every_negative_at_weight_one_is_full_bce():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    truth = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    rows, labels = truth.nonzero(as_tuple=True)
    sampled = sampled_bce(logits[rows, labels], [(logits, (~truth).float())], len(logits))
    assert torch.allclose(sampled, full_bce(logits, rows, labels))


def test_losses_leave_their_inputs_untouched():
    logits = torch.randn(2, 4)
    before = logits.clone()
    full_bce(logits, torch.tensor([0]), torch.tensor([1]))
    sampled_bce(logits[0], [(logits, torch.ones(2, 4))], 2)
    assert torch.equal(logits, before)
