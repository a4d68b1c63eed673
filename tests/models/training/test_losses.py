"""The cross-entropies against slow obvious twins, in value and in gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.training.losses import Cells, full_bce, log_partition, sampled_bce, sampled_softmax

N, N_LABELS, DIM = 3, 7, 4


def cells(matrix):
    """The non-zero cells of a dense matrix."""
    rows, labels = matrix.nonzero(as_tuple=True)
    return Cells(rows, labels, matrix[rows, labels])


NOTHING = cells(torch.zeros(0, 0))


def naive_bce(queries, weight, targets, ignored, scale, bias):
    """Cell by cell: a target t costs -t log(p) - (1 - t) log(1 - p), an ignored cell nothing."""
    total = 0.0
    for i, query in enumerate(queries.tolist()):
        for label, vector in enumerate(weight.tolist()):
            if ignored[i, label]:
                continue
            logit = scale * sum(a * b for a, b in zip(query, vector, strict=True)) + bias
            probability = 1 / (1 + math.exp(-logit))
            target = float(targets[i, label])
            total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    return total / len(queries)


def dense_bce(queries, weight, targets, ignored, scale, bias):
    """The same as one formula that autograd can take apart."""
    logits = queries @ weight.T * scale + bias
    cost = torch.nn.functional.softplus(logits) - targets * logits
    return (cost * (1 - ignored)).sum() / len(queries)


def problem(seed):
    """Queries, label vectors, soft targets, ignored cells beside them: doubles with gradients."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(N, DIM, generator=generator, dtype=torch.double)
    weight = torch.randn(N_LABELS, DIM, generator=generator, dtype=torch.double)
    kind = torch.rand(N, N_LABELS, generator=generator)
    soft = torch.rand(N, N_LABELS, generator=generator, dtype=torch.double) * 0.98 + 0.01
    targets = torch.where(kind < 0.2, 1.0, torch.where(kind < 0.4, soft, 0.0))
    ignored = (kind > 0.8).double()
    return queries.requires_grad_(), weight.requires_grad_(), targets, ignored


def chunked(queries, weight, targets, ignored, chunk, scale=1.7, bias=-0.6):
    return full_bce(
        queries, weight, cells(targets), cells(ignored), scale=scale, bias=bias, chunk=chunk
    )


def test_full_bce_of_a_hand_worked_example():
    """One query, two labels at logit 0: -log(1/2) for the positive and for the negative."""
    positive = Cells(torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    queries, weight = torch.ones(1, 2), torch.zeros(2, 2)
    loss = full_bce(queries, weight, positive, NOTHING, scale=3.0, bias=0.0, chunk=9)
    assert math.isclose(float(loss), 2 * math.log(2), rel_tol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, N_LABELS + 1))
def test_full_bce_is_the_naive_twin_for_soft_targets_and_ignored_cells(seed, chunk):
    queries, weight, targets, ignored = problem(seed)
    expected = naive_bce(queries, weight, targets, ignored, 1.7, -0.6)
    found = chunked(queries, weight, targets, ignored, chunk)
    assert math.isclose(float(found.detach()), expected, rel_tol=1e-9)


@pytest.mark.parametrize("chunk", [1, 3, N_LABELS, 100])
def test_full_bce_gradients_are_those_of_the_dense_formula(chunk):
    queries, weight, targets, ignored = problem(seed=4)
    expected = torch.autograd.grad(
        5 * dense_bce(queries, weight, targets, ignored, 1.7, -0.6), (queries, weight)
    )
    found = torch.autograd.grad(
        5 * chunked(queries, weight, targets, ignored, chunk), (queries, weight)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_full_bce_gradients_pass_gradcheck():
    queries, weight, targets, ignored = problem(seed=5)
    assert torch.autograd.gradcheck(
        lambda q, w: chunked(q, w, targets, ignored, chunk=3), (queries, weight)
    )


def test_an_ignored_label_gets_no_gradient_from_its_query():
    queries, weight, targets, _ = problem(seed=6)
    ignored = torch.zeros(N, N_LABELS, dtype=torch.double)
    ignored[:, 2] = 1.0
    targets[:, 2] = 0.0
    chunked(queries, weight, targets, ignored, chunk=2).backward()
    assert weight.grad[2].abs().max() == 0
    assert (weight.grad.abs().sum(dim=1) > 0).sum() == N_LABELS - 1


def test_cells_move_together():
    moved = Cells(torch.tensor([0]), torch.tensor([1]), torch.ones(1)).to(torch.device("meta"))
    assert {part.device.type for part in (moved.rows, moved.labels, moved.values)} == {"meta"}


@given(st.integers(0, 2**31))
def test_sampled_bce_is_its_naive_twin(seed):
    generator = torch.Generator().manual_seed(seed)
    positive, targets = torch.randn(4, generator=generator), torch.rand(4, generator=generator)
    logits, weights = torch.randn(2, 3, generator=generator), torch.rand(2, 3, generator=generator)
    more, others = torch.randn(2, 2, generator=generator), torch.rand(2, 2, generator=generator)
    expected = 0.0
    for logit, target in zip(positive.tolist(), targets.tolist(), strict=True):
        probability = 1 / (1 + math.exp(-logit))
        expected -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    for values, by in ((logits, weights), (more, others)):
        for logit, weight in zip(values.flatten().tolist(), by.flatten().tolist(), strict=True):
            expected += weight * math.log(1 + math.exp(logit))
    found = sampled_bce(positive, targets, [(logits, weights), (more, others)], 2)
    assert math.isclose(float(found), expected / 2, rel_tol=1e-5)


def test_sampled_bce_gradients_pass_gradcheck():
    generator = torch.Generator().manual_seed(7)
    positive = torch.randn(4, generator=generator, dtype=torch.double, requires_grad=True)
    logits = torch.randn(2, 3, generator=generator, dtype=torch.double, requires_grad=True)
    targets = torch.rand(4, generator=generator, dtype=torch.double)
    weights = torch.rand(2, 3, generator=generator, dtype=torch.double)
    assert torch.autograd.gradcheck(
        lambda p, x: sampled_bce(p, targets, [(x, weights)], 2), (positive, logits)
    )


def test_sampled_bce_with_every_negative_at_weight_one_is_full_bce():
    queries, weight, targets, ignored = problem(seed=8)
    logits = queries @ weight.T * 1.7 - 0.6
    positives = cells(targets)
    negatives = ((targets == 0) & (ignored == 0)).double()
    sampled = sampled_bce(
        logits[positives.rows, positives.labels], positives.values, [(logits, negatives)], N
    )
    assert torch.allclose(sampled, chunked(queries, weight, targets, ignored, chunk=4))


def test_losses_leave_their_inputs_untouched():
    queries, weight, targets, ignored = problem(seed=9)
    logits = torch.randn(2, 4)
    before = [tensor.detach().clone() for tensor in (queries, weight, targets, ignored, logits)]
    chunked(queries, weight, targets, ignored, chunk=3).backward()
    sampled_bce(logits[0], torch.ones(4), [(logits, torch.ones(2, 4))], 2)
    for now, then in zip((queries, weight, targets, ignored, logits), before, strict=True):
        assert torch.equal(now, then)


def test_a_softmax_sets_each_positive_against_the_weighted_negatives_alone():
    own = torch.tensor([2.0, -1.0, 0.5], dtype=torch.double, requires_grad=True)
    rows, targets = torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.5, 1.0], dtype=torch.double)
    pool = torch.tensor([[0.3, 4.0], [-2.0, 1.0]], dtype=torch.double)
    hard = torch.tensor([[1.5], [0.1]], dtype=torch.double)
    negatives = [(pool, torch.tensor([[3.0, 0.0], [1.0, 2.0]])), (hard, torch.tensor([[0.5], [1]]))]
    sums = [
        # Weight 0 leaves 4.0 out; half of the second positive is a negative.
        3 * math.exp(0.3) + 0.5 * math.exp(1.5) + 0.5 * math.exp(-1.0),
        math.exp(-2.0) + 2 * math.exp(1.0) + math.exp(0.1),
    ]
    expected = sum(
        -target * math.log(math.exp(logit) / (math.exp(logit) + sums[row]))
        for logit, target, row in zip(own.tolist(), targets.tolist(), rows.tolist(), strict=True)
    )
    loss = sampled_softmax(own, targets, log_partition(negatives, own, targets, rows)[rows], 2)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-6)
    loss.backward()
    share = math.exp(0.5) / (math.exp(0.5) + sums[1])
    assert own.grad[2].item() == pytest.approx((share - 1) / 2, rel=1e-6)


@pytest.mark.parametrize("width", [0, 3])
def test_a_softmax_without_any_negative_costs_nothing_and_stays_a_number(width):
    own = torch.tensor([0.0], requires_grad=True)
    nothing = [(torch.zeros(1, width), torch.zeros(1, width))]
    ones, first = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    loss = sampled_softmax(own, ones, log_partition(nothing, own, ones, first), 1)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(own.grad).all()
