"""The contrastive losses against slow obvious twins, and their gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.training.losses import contrastive_hinge, info_nce

MARGIN, HARDEST, TEMPERATURE = 0.3, 3, 0.1


def naive_hinge(scores, positives, allowed):
    """The loss, and what each score adds to it when it moves: the gradient, worked out by hand."""
    total = 0.0
    gradient = [[0.0] * len(row) for row in scores]
    for query, row in enumerate(scores):
        own = row[positives[query]]
        negatives = [label for label in range(len(row)) if allowed[query][label]]
        nearest = sorted(negatives, key=lambda label: -row[label])[:HARDEST]
        hinge = {label: max(0.0, row[label] - own + MARGIN) for label in nearest}
        heat = {
            label: math.exp((row[label] if hinge[label] > 0 else 0.0) / TEMPERATURE)
            for label in nearest
        }
        for label in nearest:
            weight = heat[label] / sum(heat.values()) / len(scores)
            total += weight * hinge[label]
            if hinge[label] > 0:
                gradient[query][label] += weight
                gradient[query][positives[query]] -= weight
    return total, gradient


def naive_info_nce(scores, positives, allowed):
    total = 0.0
    for query, row in enumerate(scores):
        heat = [math.exp(score / TEMPERATURE) for score in row]
        among = sum(heat[label] for label in range(len(row)) if allowed[query][label])
        own = heat[positives[query]]
        total -= math.log(own / (own + among))
    return total / len(scores)


def drawn(seed, n, m):
    """Scores of unit-norm size, a positive a query, and negatives that leave the positive out."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, m, generator=generator, dtype=torch.float64) * 2 - 1
    positives = torch.randint(m, (n,), generator=generator)
    allowed = torch.rand(n, m, generator=generator) < 0.7
    return scores, positives, allowed.scatter(1, positives.unsqueeze(1), False)


def hinge(scores, positives, allowed):
    return contrastive_hinge(
        scores, positives, allowed, margin=MARGIN, hardest=HARDEST, temperature=TEMPERATURE
    )


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 8))
def test_hinge_and_its_gradient_match_the_naive_twin(seed, n, m):
    scores, positives, allowed = drawn(seed, n, m)
    loss = hinge(scores.requires_grad_(), positives, allowed)
    loss.backward()
    expected, gradient = naive_hinge(scores.tolist(), positives.tolist(), allowed.tolist())
    assert math.isclose(float(loss.detach()), expected, rel_tol=1e-9, abs_tol=1e-12)
    assert torch.allclose(scores.grad, torch.tensor(gradient, dtype=torch.float64), atol=1e-12)


def test_hinge_of_a_hand_worked_example():
    """Positive 0.5; 0.4 violates by 0.2, 0.1 does not and counts as 0 in the softmax."""
    scores = torch.tensor([[0.5, 0.4, 0.1]], dtype=torch.float64)
    allowed = torch.tensor([[False, True, True]])
    loss = hinge(scores, torch.tensor([0]), allowed)
    assert math.isclose(float(loss), 0.2 * math.exp(4) / (math.exp(4) + 1), rel_tol=1e-9)


def test_a_query_without_negatives_gives_nothing():
    scores = torch.tensor([[0.5, 0.9]], requires_grad=True)
    loss = hinge(scores, torch.tensor([0]), torch.tensor([[False, False]]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert scores.grad.tolist() == [[0.0, 0.0]]


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 8))
def test_info_nce_matches_the_naive_twin(seed, n, m):
    scores, positives, allowed = drawn(seed, n, m)
    loss = info_nce(scores, positives, allowed, temperature=TEMPERATURE)
    expected = naive_info_nce(scores.tolist(), positives.tolist(), allowed.tolist())
    assert math.isclose(float(loss), expected, rel_tol=1e-9, abs_tol=1e-12)


def test_info_nce_passes_gradcheck():
    scores, positives, allowed = drawn(7, 4, 6)
    assert torch.autograd.gradcheck(
        lambda moved: info_nce(moved, positives, allowed, temperature=TEMPERATURE),
        scores.requires_grad_(),
    )


@pytest.mark.parametrize("loss", [hinge, lambda *given: info_nce(*given, temperature=0.1)])
def test_scores_of_forbidden_labels_do_not_matter(loss):
    """A false negative may score what it likes: neither the loss nor its gradient sees it."""
    scores, positives, allowed = drawn(3, 5, 7)
    neither = ~allowed.scatter(1, positives.unsqueeze(1), True)
    assert neither.any()
    louder = scores.masked_fill(neither, 5.0).requires_grad_()
    loss(louder, positives, allowed).backward()
    assert torch.equal(loss(scores, positives, allowed), loss(louder, positives, allowed).detach())
    assert float(louder.grad[neither].abs().max()) == 0.0


@pytest.mark.parametrize("loss", [hinge, lambda *given: info_nce(*given, temperature=0.1)])
def test_losses_leave_their_inputs_untouched(loss):
    inputs = drawn(1, 3, 4)
    before = [tensor.clone() for tensor in inputs]
    loss(*inputs)
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))
