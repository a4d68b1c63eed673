"""Sums and products of a table's rows against dense autograd, in value and in gradients."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.sparse_rows import bag_sums, pair_products

N_ROWS, DIM = 9, 4


def table(seed, n=N_ROWS):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, DIM, generator=generator, dtype=torch.double).requires_grad_()


def lists(most):
    return st.lists(st.integers(0, most - 1), max_size=12)


@given(st.lists(lists(N_ROWS), min_size=1, max_size=5))
def test_sums_of_bags_and_their_gradients_are_the_dense_ones(bags):
    ids = torch.tensor([row for bag in bags for row in bag], dtype=torch.long)
    ours, theirs, factors = table(1), table(1), table(2, len(bags)).detach()
    sums = bag_sums(ours, ids, torch.tensor([len(bag) for bag in bags]))
    expected = torch.stack([theirs[bag].sum(dim=0) for bag in bags])
    assert torch.allclose(sums, expected)
    (sums * factors).sum().backward()
    (expected * factors).sum().backward()
    assert torch.allclose(ours.grad.to_dense(), theirs.grad)
    assert sorted(set(ids.tolist())) == ours.grad.coalesce().indices()[0].tolist()


def test_products_and_their_gradients_are_the_dense_ones():
    at = torch.tensor([2, 0, 0, 2, 2])
    cases = (
        ([1, 1, 8, 0, 1], [3, 1]),  # rows that are repeated, and one that is also shared
        ([1, 1, 8, 0, 1], []),
        ([], [5]),
        ([], []),
    )
    for rows, shared in cases:
        ours, theirs = (table(1), table(2, 3)), (table(1), table(2, 3))
        pairs, block = pair_products(
            ours[1],
            ours[0],
            at[: len(rows)],
            torch.tensor(rows).long(),
            torch.tensor(shared).long(),
        )
        every = theirs[1] @ theirs[0].T
        expected = every[at[: len(rows)], rows], every[:, shared]
        for found, wanted in zip((pairs, block), expected, strict=True):
            assert torch.allclose(found, wanted)
        (pairs.square().sum() + block.exp().sum()).backward()
        (expected[0].square().sum() + expected[1].exp().sum()).backward()
        assert torch.allclose(ours[0].grad.to_dense(), theirs[0].grad)
        assert torch.allclose(ours[1].grad, theirs[1].grad)
        assert set(ours[0].grad.coalesce().indices()[0].tolist()) == {*rows, *shared}


def test_more_pairs_than_are_multiplied_at_once():
    generator = torch.Generator().manual_seed(3)
    at, rows = torch.randint(3, (2500,), generator=generator), torch.arange(2500) % N_ROWS
    pairs, _ = pair_products(table(2, 3), table(1), at, rows, rows[:0])
    assert torch.allclose(pairs, (table(2, 3) @ table(1).T)[at, rows])
