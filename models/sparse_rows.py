"""Sums and products that read few rows of a large table, with gradients of those rows alone.

A gradient is a row-sparse tensor that holds each row once. It is summed straight from the
gradients of the results: row r gets a weighted sum of the few rows that it met. torch's own
embeddings write a row for each time that a row was read, and add them up later.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

_ON_CPU, _ON_DEVICE = 1024, 65536
"""Pairs whose rows are multiplied at once. Measured: on a CPU they then stay in its cache, which
halves the time. Choice: on a device few large steps, in bounded memory."""


def bag_sums(table: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    """Sums (n, dim) of the rows of `table` (rows, dim) in n bags.

    `ids` names the rows of all bags, one bag after another; `lengths` (n,) are the bags' numbers
    of ids. The gradient of `table` is row-sparse.
    """
    sums: Tensor = _BagSums.apply(table, ids, lengths)
    return sums


def pair_products(
    queries: Tensor, table: Tensor, at: Tensor, rows: Tensor, shared: Tensor
) -> tuple[Tensor, Tensor]:
    """Inner products of `queries` (n, dim) with some rows of `table` (rows, dim).

    The first result (pairs,) has a product for each pair of a query `at` and one of the `rows`. The
    second (n, m) has those of every query with the `shared` rows (m,). They are on the device of
    `queries`; `at`, `rows` and `shared` may be on any. Where `table` is elsewhere, the products are
    made there. The gradient of `table` is row-sparse.
    """
    device = table.device
    of_pairs, of_shared = _PairProducts.apply(
        queries.to(device), table, at.to(device), rows.to(device), shared.to(device)
    )
    return of_pairs.to(queries.device), of_shared.to(queries.device)


def row_sums(rows: Tensor, at: Tensor, source: Tensor, weights: Tensor | None, n: int) -> Tensor:
    """A row-sparse (n, dim) tensor: row rows[i] is the sum of weights[i] * source[at[i]].

    `rows`, `at` and `weights` are (entries,), `source` is (m, dim). No `weights` are all one.
    """
    ordered, order = rows.sort(stable=True)
    unique, counts = ordered.unique_consecutive(return_counts=True)
    values = embedding_bag(
        at[order],
        source,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=None if weights is None else weights[order],
    )
    return torch.sparse_coo_tensor(
        unique.unsqueeze(0),
        values,
        (n, source.shape[1]),
        check_invariants=False,
        is_coalesced=True,
    )


class _BagSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        ctx.save_for_backward(ids, lengths)
        ctx.n = len(table)
        return embedding_bag(ids, table.detach(), lengths.cumsum(0) - lengths, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ids, lengths = ctx.saved_tensors
        bags = torch.arange(len(lengths), device=ids.device)
        bags = bags.repeat_interleave(lengths, output_size=len(ids))
        return row_sums(ids, bags, gradients[0].contiguous(), None, ctx.n), None, None


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, table: Tensor, at: Tensor, rows: Tensor, shared: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(queries, table, at, rows, shared)
        of_pairs = queries.new_empty(len(rows))
        size = _ON_CPU if table.device.type == "cpu" else _ON_DEVICE
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            products = table.index_select(0, rows[part]).mul_(queries.index_select(0, at[part]))
            torch.sum(products, dim=1, out=of_pairs[part])
        return of_pairs, queries @ table.index_select(0, shared).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        queries, table, at, rows, shared = ctx.saved_tensors
        of_pairs, of_shared = gradients
        n, m = of_shared.shape
        to_queries = of_shared @ table.index_select(0, shared)
        to_queries += row_sums(at, rows, table.detach(), of_pairs, n).to_dense()
        # A shared row meets every query: its sum is one more row to choose from.
        source = torch.cat([queries, of_shared.T @ queries])
        extra = torch.arange(n, n + m, device=at.device)
        to_table = row_sums(
            torch.cat([rows, shared]),
            torch.cat([at, extra]),
            source,
            torch.cat([of_pairs, of_pairs.new_ones(m)]),
            len(table),
        )
        return to_queries, to_table, None, None, None
