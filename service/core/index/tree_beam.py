"""Beam search over label trees of any shape, for all queries and all trees of a forest at once.

One step descends one level for every (query, open node) pair, without a loop over queries, nodes or
labels. A scorer scores the nodes, so dense and sparse classifiers share this search; `label_tree`
turns embeddings into answers with it.

Costs are negative log probabilities, which only grow along a path. One integer packs a node's cost
and number. The least integers are then the best nodes, ties go to the smaller node number, and no
answer depends on the other queries of its batch.
"""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Costs = NDArray[np.float32]
Transform = Literal["logistic", "l3-hinge"]

TRANSFORMS: Final[tuple[Transform, ...]] = ("logistic", "l3-hinge")
PADDING: Final = np.iinfo(np.int64).max
_LOW: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees side by side. Items are the nodes and, after the last node, the label slots.

    The children of node i are the items from `first[i]` up to `end[i]`, exclusive: nodes, or slots
    if i is a leaf. Slot s holds the label row `labels[s]`. Every tree holds every label once.
    """

    first: Ints
    end: Ints
    labels: Ints
    roots: Ints

    @property
    def n_nodes(self) -> int:
        """Number of nodes of all trees, with leaves and roots."""
        return len(self.first)

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return len(self.roots)

    @property
    def n_labels(self) -> int:
        """Number of labels, the same in each tree."""
        return len(self.labels) // len(self.roots)

    @property
    def leaf(self) -> NDArray[np.bool_]:
        """Whether each node is a leaf, (n_nodes,)."""
        return self.first >= len(self.first)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The items to score: item `items[m]` for query `query[m]`, as a child of pair `pair[m]`.

    A pair p is a query and one of its open nodes, `node[p]`. The children of a pair stand together,
    in order.
    """

    query: Ints
    items: Ints
    pair: Ints
    node: Ints


class Scorer(Protocol):
    """Scores the children of (query, node) pairs: (len(blocks.items),) float32.

    A score must not depend on the other pairs.
    """

    def __call__(self, blocks: Blocks) -> Costs:
        """Raw scores, the higher the likelier."""
        ...


def cost_of(scores: Costs, transform: Transform) -> Costs:
    """Negative log of the probability of each raw score.

    >>> cost_of(np.float32([0.0, 2.0]), "logistic").round(4)
    array([0.6931, 0.1269], dtype=float32)
    >>> cost_of(np.float32([-1.0, 0.5, 2.0]), "l3-hinge")
    array([8.   , 0.125, 0.   ], dtype=float32)
    """
    if transform == "logistic":
        costs: Costs = np.logaddexp(np.float32(0), -scores)
        return costs
    short: Costs = np.maximum(np.float32(1) - scores, np.float32(0))
    return short * short * short


def pack(costs: Costs, numbers: Ints) -> Ints:
    """Pack each cost and number into one integer, which sorts by cost and then by number.

    Costs must not be negative.

    >>> costs, numbers = unpack(pack(np.float32([0.5, 0.25]), np.array([7, 9])))
    >>> costs, numbers
    (array([0.5 , 0.25], dtype=float32), array([7, 9]))
    """
    # Bits of floats that are not negative sort as their values do; abs turns -0 into 0.
    keys = np.abs(costs).view(np.int32).astype(np.int64)
    keys <<= 32
    keys |= numbers
    return keys


def unpack(keys: Ints) -> tuple[Costs, Ints]:
    """The costs and numbers of packed integers."""
    return (keys >> 32).astype(np.int32).view(np.float32), keys & _LOW


@dataclass(frozen=True, slots=True)
class TreeBeam:
    """Searches a forest; `path_weight` in [0, 1] is the weight of a path's cost in a label's."""

    forest: Forest
    transform: Transform
    path_weight: float

    def leaves(self, score: Scorer, n_queries: int, beam: int) -> Ints:
        """Keys (n_queries x n_trees, width) of the `beam` best leaves, or of all, unordered.

        A leaf reached early keeps its place in the beam while it is among the best. The search ends
        when the beam holds leaves only: an open node outside it can only lead to costlier leaves.
        """
        inner = np.append(~self.forest.leaf, False)  # padding is clipped to the last
        keys = np.tile(self.forest.roots, n_queries)[:, None]  # (rows, 1), the root's cost is 0
        while True:
            is_open = inner.take(keys & _LOW, mode="clip")
            n_open = np.count_nonzero(is_open)
            if not n_open:
                return keys
            children = _rows(*self._children(keys, is_open, score, 1.0), len(keys))
            if n_open < keys.size:
                children = np.concatenate([np.where(is_open, PADDING, keys), children], axis=1)
            if children.shape[1] > beam:
                children.partition(beam - 1, axis=1)
                children = children[:, :beam]
            keys = children

    def labels(self, leaves: Ints, score: Scorer) -> Ints:
        """Keys (rows, width) of the labels in these leaves, with label rows, padded, unordered."""
        row, keys = self._children(leaves, leaves != PADDING, score, self.path_weight)
        slots = (keys & _LOW) - self.forest.n_nodes
        return _rows(row, (keys & ~_LOW) | self.forest.labels[slots], len(leaves))

    def _children(
        self, keys: Ints, is_open: NDArray[np.bool_], score: Scorer, weight: float
    ) -> tuple[Ints, Ints]:
        """Row and key of each child of the open nodes; `weight` is that of the parent's cost."""
        forest = self.forest
        costs, nodes = unpack(keys[is_open])
        first = forest.first[nodes]
        counts = forest.end[nodes] - first
        before = np.cumsum(counts) - counts
        pair = np.repeat(np.arange(len(nodes)), counts)
        items = np.arange(len(pair)) + (first - before)[pair]
        row = is_open.nonzero()[0][pair]
        query = row if forest.n_trees == 1 else row // forest.n_trees
        own = cost_of(score(Blocks(query, items, pair, nodes)), self.transform)
        if weight:
            own += (np.float32(weight) * costs)[pair]
        return row, pack(own, items)


def _rows(row: Ints, keys: Ints, n_rows: int) -> Ints:
    """Arrange keys, which are ordered by row, as one padded array (n_rows, width)."""
    counts = np.bincount(row, minlength=n_rows)
    width = int(counts.max())
    if len(keys) == n_rows * width:
        return keys.reshape(n_rows, width)
    padded = np.full((n_rows, width), PADDING)
    padded[row, np.arange(len(keys)) - (np.cumsum(counts) - counts)[row]] = keys
    return padded
