"""How deep the labels of a tree lie on average, and what bounds it from below."""

import heapq

import numpy as np
from numpy.typing import NDArray

from models.label_trees.shape import TreeShape


def label_depths(shape: TreeShape) -> NDArray[np.int64]:
    """Edges from the root to each label's leaf, (n_labels,) by label row."""
    depths = np.empty(len(shape.labels), np.int64)
    sizes = (shape.end - shape.first)[shape.leaf]
    depths[shape.labels] = np.repeat(shape.depth[shape.leaf], sizes)
    return depths


def expected_depth(shape: TreeShape, counts: NDArray[np.integer]) -> float:
    """D(T): depth of a label's leaf, averaged over label occurrences. The paper's latency proxy."""
    return float(counts @ label_depths(shape) / counts.sum())


def entropy(counts: NDArray[np.integer]) -> float:
    """Bits of one label occurrence: no binary tree with single leaves is shallower on average.

    >>> entropy(np.array([2, 1, 1]))
    1.5
    """
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def huffman_depth(counts: NDArray[np.integer]) -> float:
    """The least expected depth of a binary tree with single leaves, similarity disregarded.

    >>> huffman_depth(np.array([2, 1, 1]))
    1.5
    """
    heap = [float(count) for count in counts]
    heapq.heapify(heap)
    total = 0.0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total / float(counts.sum())
