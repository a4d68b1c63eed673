"""Clusters of one size, as an order of the rows in which similar rows are neighbours.

The method is recursive balanced 2-means (as in Parabel, Prabhu et al., WWW 2018). It cuts the rows
into two halves, by which of two centres is nearer. Then it cuts each half, down to clusters of the
requested size. Contrastive pre-training fills batches with such clusters; ELIAS clusters labels.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
"""Most rounds of 2-means in a cut. A choice between time and the quality of clusters."""


def clustered_order(
    vectors: NDArray[np.float32], size: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """A permutation of the rows of `vectors` (n, dim); each `size` in succession are a cluster.

    If n is no multiple of `size`, the last cluster is smaller.

    >>> order = clustered_order(np.array([[0.0], [9.0], [1.0], [8.0]]), 2, np.random.default_rng(1))
    >>> sorted(sorted(cluster.tolist()) for cluster in np.split(order, 2))
    [[0, 2], [1, 3]]
    """
    order = np.arange(len(vectors))
    spans = [(0, len(vectors))]
    while spans:
        start, stop = spans.pop()
        n_clusters = -(-(stop - start) // size)
        if n_clusters < 2:
            continue
        middle = start + n_clusters // 2 * size
        rows = order[start:stop]
        order[start:stop] = rows[_halve(vectors[rows], middle - start, generator)]
        spans += [(start, middle), (middle, stop)]
    return order


def _halve(
    points: NDArray[np.float32], n_left: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """An order of the points: first the `n_left` that are nearer to one centre, then the others.

    |x - a|^2 - |x - b|^2 falls with <x, a - b>. So a sort by that product is the assignment of
    2-means when both sizes are fixed.
    """
    first, second = points[generator.choice(len(points), 2, replace=False)]
    total = points.sum(axis=0)
    left_half: NDArray[np.bool_] | None = None
    for _ in range(_ROUNDS):
        order = np.argsort(points @ (second - first), kind="stable")
        before, left_half = left_half, np.zeros(len(points), np.bool_)
        left_half[order[:n_left]] = True
        if before is not None and np.array_equal(before, left_half):
            break
        inside = points[left_half].sum(axis=0)
        first, second = inside / n_left, (total - inside) / (len(points) - n_left)
    return order
