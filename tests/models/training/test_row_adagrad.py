"""Row-wise Adagrad against its formula, written out in Python."""

import math

import pytest
import torch
from torch import nn

from models.training.row_adagrad import RowAdagrad

RATE = 0.5
STEPS = (
    {0: [3.0, 4.0], 2: [1.0, -1.0]},
    {2: [0.0, 2.0]},
    {0: [-3.0, 0.0], 1: [1e-8, 0.0], 2: [0.5, 0.5]},
)
"""Gradients of the rows that each step reaches."""


def gradient_of(step, sparse):
    if not sparse:
        return torch.tensor([step.get(row, [0.0, 0.0]) for row in range(4)])
    # Each row in two parts, as where two losses read it.
    rows = [row for row in step for _ in range(2)]
    values = [[value / 2 for value in step[row]] for row in rows]
    return torch.sparse_coo_tensor([rows], values, (4, 2), check_invariants=True)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_row_moves_by_its_gradient_over_the_root_of_its_own_sum(sparse):
    weight = nn.Parameter(torch.ones(4, 2))
    optimizer = RowAdagrad([weight], RATE)
    expected, sums = [[1.0, 1.0] for _ in range(4)], [0.0] * 4
    for step in STEPS:
        weight.grad = gradient_of(step, sparse)
        optimizer.step()
        for row, gradient in step.items():
            sums[row] += sum(value**2 for value in gradient) / 2
            for column, value in enumerate(gradient):
                expected[row][column] -= RATE * value / (math.sqrt(sums[row]) + 1e-10)
    assert torch.allclose(weight, torch.tensor(expected), rtol=1e-5)
    assert weight[3].tolist() == [1.0, 1.0]


def test_a_row_met_late_moves_as_far_as_one_met_early():
    weight = nn.Parameter(torch.zeros(4, 2))
    optimizer = RowAdagrad([weight], RATE)
    for row in [0] * 1000 + [1]:
        before = weight.detach().clone()
        weight.grad = gradient_of({row: [1.0, 1.0]}, sparse=True)
        optimizer.step()
        if not before[row].any():
            assert torch.allclose(weight[row], torch.tensor(-RATE))


def test_a_table_without_a_gradient_stays():
    weight = nn.Parameter(torch.ones(2, 2))
    RowAdagrad([weight], RATE).step()
    assert weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]
