"""Grows the shape of a label tree: which labels share a subtree, and how deep each label lies.

Two rules cut a set of labels in two. Both follow "Enabling Efficiency-Precision Trade-offs for
Label Trees in Extreme Classification" (arXiv 2106.00730). Its formulas are not public, so these are
our reconstructions. Each label has a vector (`label_vectors`) and a mass, its share of all
occurrences.

- `MassBalance` (gamma) sorts labels along the difference of two centres and cuts where half of
  mass^gamma lies on either side. Gamma 0 is Parabel's balanced 2-means; gamma 1 is Fano's code with
  similar labels together. As gamma grows, frequent labels rise towards the root.
- `EntropySplit` (lambda) makes the cut that maximises similarity to the centres, weighted by mass,
  plus lambda times the entropy of the cut. Lambda 0 is unconstrained weighted 2-means.

Frequent labels near the root make the expected depth small. models.label_trees.classifiers trains
the nodes.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

Rows: TypeAlias = NDArray[np.float32] | csr_array
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_ROUNDS: Final = 10  # of 2-means at most; a choice between time and a cut that no round changes
_MAX_DEPTH: Final = 64  # below it every cut is in the middle; far deeper than any tree should be


@dataclass(frozen=True, slots=True)
class MassBalance:
    """Cuts where half the sum of mass^gamma lies on either side; gamma is in [0, 1]."""

    gamma: float

    def weights(self, masses: Floats) -> Floats:
        """The weight of each label at a node; equal weights where no label has any mass."""
        weights = masses**self.gamma
        return weights if weights.any() else np.ones(len(masses))

    def cut(self, weights: Floats, gains: Floats) -> int:
        """The number of labels that go left; of cuts equally close to half, the middlemost."""
        del gains
        sums = np.cumsum(weights)
        distances = np.abs(sums[:-1] - sums[-1] / 2)
        return _middlemost(distances == distances.min())


@dataclass(frozen=True, slots=True)
class EntropySplit:
    """Maximises similarity plus `bits` (lambda >= 0) times the entropy of the two sides' masses."""

    bits: float

    def weights(self, masses: Floats) -> Floats:
        """The weight of each label at a node; equal weights where no label has any mass."""
        return masses if masses.any() else np.ones(len(masses))

    def cut(self, weights: Floats, gains: Floats) -> int:
        """The number of labels that go left at the best cut, of several the middlemost.

        Prefix sums try all cuts.
        """
        share = np.cumsum(weights)[:-1] / weights.sum()
        # The similarity of each cut, less that of all labels on the right, which is a constant.
        similarity = -np.cumsum(weights * gains)[:-1] / weights.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            entropies = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
        worth = similarity + self.bits * np.nan_to_num(entropies)
        return _middlemost(worth == worth.max())


def _middlemost(best: NDArray[np.bool_]) -> int:
    """The number of labels left of the best cut that is nearest to the middle; (n_labels - 1,).

    Labels without a training point have no mass, so many cuts are equally good. The first of them
    would peel off one label a level.
    """
    cuts = 1 + np.flatnonzero(best)
    return int(cuts[np.abs(2 * cuts - len(best) - 1).argmin()])


Rule: TypeAlias = MassBalance | EntropySplit


@dataclass(frozen=True, slots=True)
class TreeShape:
    """One tree. Nodes are numbered level by level, so the children of a node have adjacent numbers.

    The children of node i are `first[i]` to `end[i] - 1`. Where `leaf[i]` is true, the node instead
    holds the labels `labels[first[i]:end[i]]`. `depth` is 0 at the root. All arrays are (n_nodes,)
    but `labels` (n_labels,), the label rows in the order of the leaves.
    """

    first: Ints
    end: Ints
    leaf: NDArray[np.bool_]
    depth: Ints
    labels: Ints


def label_vectors(points: Rows, labels: csr_array) -> Rows:
    """The mean of each label's points at unit norm (PIFA): (n_labels, dim), zero without points.

    `points` (n, dim) are dense or sparse rows, `labels` is (n, n_labels).
    """
    ones = csr_array(labels > 0, dtype=np.float32)
    if isinstance(points, np.ndarray):
        lengths = np.linalg.norm(points, axis=1, keepdims=True)
        sums = np.asarray(ones.T @ (points / np.maximum(lengths, 1e-12)))
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return _unit_rows(csr_array(ones.T @ _unit_rows(points)))


def _unit_rows(rows: csr_array) -> csr_array:
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).reshape(-1))
    return csr_array(diags_array(1 / np.maximum(lengths, 1e-12)) @ rows).astype(np.float32)


def grow(
    vectors: Rows, counts: NDArray[np.integer], rule: Rule, leaf_size: int, seed: int
) -> TreeShape:
    """Cut the labels in two again and again, until a leaf has at most `leaf_size` labels.

    `vectors` are (n_labels, dim), `counts` (n_labels,) occurrences. The same arguments give the
    same tree.

    >>> shape = grow(np.eye(5, dtype=np.float32), np.ones(5, int), MassBalance(0.0), 2, seed=1)
    >>> shape.leaf.tolist(), shape.depth.tolist(), sorted(shape.labels.tolist())
    ([False, True, False, True, True], [0, 1, 1, 2, 2], [0, 1, 2, 3, 4])
    """
    generator = np.random.default_rng(seed)
    masses = np.asarray(counts / max(int(counts.sum()), 1))
    nodes: list[Ints] = [np.arange(len(counts))]
    depth = [0]
    spans: list[tuple[int, int]] = []
    leaf_rows: list[Ints] = []
    n_in_leaves = 0
    while len(spans) < len(nodes):
        node = len(spans)
        rows = nodes[node]
        if len(rows) <= leaf_size:
            spans.append((n_in_leaves, n_in_leaves + len(rows)))
            n_in_leaves += len(rows)
            leaf_rows.append(rows)
            continue
        # No similarity is worth a tree that is a chain.
        node_rule = rule if depth[node] < _MAX_DEPTH else MassBalance(0.0)
        left = halve(vectors[rows], masses[rows], node_rule, generator)
        spans.append((len(nodes), len(nodes) + 2))
        nodes += [rows[left], rows[~left]]
        depth += [depth[node] + 1] * 2
        nodes[node] = rows[:0]  # the children have the labels now
    first, end = np.array(spans).T
    leaf = np.array([len(rows) > 0 for rows in nodes])
    return TreeShape(first, end, leaf, np.array(depth), np.concatenate(leaf_rows))


def halve(
    vectors: Rows, masses: Floats, rule: Rule, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Cut two or more labels in two; returns a mask of those that go left. No side is empty.

    Each round orders the labels by how much nearer they are to the right centre, lets the rule cut
    that order, and moves each centre to the mean of its side. It ends when the sides stay the same.
    """
    weights = rule.weights(masses)
    centres = vectors[generator.choice(len(masses), 2, replace=False)]
    if not isinstance(centres, np.ndarray):
        centres = centres.toarray()
    left = np.zeros(len(masses), np.bool_)
    for _ in range(_ROUNDS):
        gains = np.asarray(vectors @ (centres[1] - centres[0]), np.float64)
        order = np.argsort(gains, kind="stable")
        before, left = left, np.zeros(len(masses), np.bool_)
        left[order[: rule.cut(weights[order], gains[order])]] = True
        if np.array_equal(before, left):
            break
        centres = np.stack([_centre(vectors, weights, side) for side in (left, ~left)])
    return left


def _centre(vectors: Rows, weights: Floats, side: NDArray[np.bool_]) -> NDArray[np.float32]:
    total = np.asarray((weights * side).astype(np.float32) @ vectors, np.float32)
    return total / np.float32(max(float(np.linalg.norm(total)), 1e-12))


def merge_levels(shape: TreeShape, levels: int) -> TreeShape:
    """Merge every `levels` levels of a binary tree into one, so that nodes have 2^levels children.

    A search then takes fewer, wider steps to the same leaves. The leaves' labels and the order of
    siblings stay the same.
    """
    if levels == 1:
        return shape
    old_nodes, depth = [0], [0]
    spans: list[tuple[int, int]] = []
    while len(spans) < len(old_nodes):
        node = len(spans)
        old = old_nodes[node]
        if shape.leaf[old]:
            spans.append((int(shape.first[old]), int(shape.end[old])))
            continue
        below = [old]
        for _ in range(levels):
            below = [
                child
                for parent in below
                for child in (
                    [parent]
                    if shape.leaf[parent]
                    else range(int(shape.first[parent]), int(shape.end[parent]))
                )
            ]
        spans.append((len(old_nodes), len(old_nodes) + len(below)))
        old_nodes += below
        depth += [depth[node] + 1] * len(below)
    leaf = shape.leaf[old_nodes]
    first, end = np.array(spans).T
    # Label slots follow the order of the leaves, which the merge may have changed.
    order = np.concatenate([np.arange(a, b) for a, b in zip(first[leaf], end[leaf], strict=True)])
    sizes = (end - first)[leaf]
    end[leaf] = np.cumsum(sizes)
    first[leaf] = end[leaf] - sizes
    return TreeShape(first, end, leaf, np.array(depth), shape.labels[order])
