"""The shape of a label tree: which labels share a subtree, and how deep each one lies.

Two rules cut a set of labels in two, both after "Enabling Efficiency-Precision Trade-offs for Label
Trees in Extreme Classification" (arXiv 2106.00730), whose formulas are not public: these are our
reconstructions. Each label has a vector (`label_vectors`) and a mass, its share of all occurrences.

- `MassBalance` (gamma): labels are sorted along the difference of two centres and cut where half of
  mass^gamma lies on either side. 0 is Parabel's balanced 2-means, 1 is Fano's code that keeps
  similar labels together; in between, frequent labels rise towards the root as gamma grows.
- `EntropySplit` (lambda): the cut that maximises similarity to the centres, weighted by mass, plus
  lambda times the bits that the cut resolves. 0 is unconstrained weighted 2-means.

Frequent labels near the root make the expected depth small. Nothing here is trained: that is
`models.methods.tree`.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

Rows: TypeAlias = NDArray[np.float32] | csr_array
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_ROUNDS: Final = 10
_DEEPEST: Final = 64  # below it every cut is in the middle: a mere safeguard


@dataclass(frozen=True, slots=True)
class MassBalance:
    """Cut where the mass to the power of gamma, in [0, 1], is halved."""

    gamma: float

    def weights(self, masses: Floats) -> Floats:
        """The weight of each label at a node; all alike where none has any mass."""
        weights = masses**self.gamma
        return weights if weights.any() else np.ones(len(masses))

    def cut(self, weights: Floats, gains: Floats) -> int:
        """How many labels go left: of those closest to half, the smaller number."""
        del gains
        sums = np.cumsum(weights)
        return 1 + int(np.abs(sums[:-1] - sums[-1] / 2).argmin())


@dataclass(frozen=True, slots=True)
class EntropySplit:
    """Cut for similarity plus `bits` (lambda >= 0) times the entropy of the two sides' masses."""

    bits: float

    def weights(self, masses: Floats) -> Floats:
        """The weight of each label at a node; all alike where none has any mass."""
        return masses if masses.any() else np.ones(len(masses))

    def cut(self, weights: Floats, gains: Floats) -> int:
        """The best threshold for these centres: all are tried by prefix sums."""
        share = np.cumsum(weights)[:-1] / weights.sum()
        # What the left labels lose against all lying right; a constant is left out.
        similar = -np.cumsum(weights * gains)[:-1] / weights.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            resolved = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
        return 1 + int((similar + self.bits * np.nan_to_num(resolved)).argmax())


Rule: TypeAlias = MassBalance | EntropySplit


@dataclass(frozen=True, slots=True)
class TreeShape:
    """One tree, its nodes numbered level by level, so that the children of a node stand together.

    Node i has the nodes `first[i]` to `end[i]` for children or, where `leaf[i]`, holds the labels
    `labels[first[i]:end[i]]`. `depth` is 0 at the root.
    """

    first: Ints
    end: Ints
    leaf: NDArray[np.bool_]
    depth: Ints
    labels: Ints

    @property
    def label_depths(self) -> Ints:
        """Edges from the root to each label's leaf, by label row."""
        depths = np.empty(len(self.labels), np.int64)
        sizes = (self.end - self.first)[self.leaf]
        depths[self.labels] = np.repeat(self.depth[self.leaf], sizes)
        return depths


def label_vectors(points: Rows, labels: csr_array) -> Rows:
    """Unit mean of each label's points (PIFA), zero for a label without points.

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
    """Cut the labels in two, and so on until at most `leaf_size` are together.

    `counts` (n_labels,) are occurrences. The same arguments give the same tree.

    >>> shape = grow(np.eye(5, dtype=np.float32), np.ones(5, int), MassBalance(0.0), 2, seed=1)
    >>> shape.leaf.tolist(), shape.depth.tolist(), sorted(shape.labels.tolist())
    ([False, True, False, True, True], [0, 1, 1, 2, 2], [0, 1, 2, 3, 4])
    """
    generator = np.random.default_rng(seed)
    masses = np.asarray(counts / max(int(counts.sum()), 1))
    nodes: list[Ints] = [np.arange(len(counts))]
    depth = [0]
    spans: list[tuple[int, int]] = []
    kept: list[Ints] = []
    n_kept = 0
    while len(spans) < len(nodes):
        node = len(spans)
        rows = nodes[node]
        if len(rows) <= leaf_size:
            spans.append((n_kept, n_kept + len(rows)))
            n_kept += len(rows)
            kept.append(rows)
            continue
        # The safeguard: no similarity is worth a tree that is a chain.
        used = rule if depth[node] < _DEEPEST else MassBalance(0.0)
        left = halve(vectors[rows], masses[rows], used, generator)
        spans.append((len(nodes), len(nodes) + 2))
        nodes += [rows[left], rows[~left]]
        depth += [depth[node] + 1] * 2
        nodes[node] = rows[:0]  # its labels are its children's now
    first, end = np.array(spans).T
    leaf = np.array([len(rows) > 0 for rows in nodes])
    return TreeShape(first, end, leaf, np.array(depth), np.concatenate(kept))


def halve(
    vectors: Rows, masses: Floats, rule: Rule, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Which of the labels go left; both sides get some. Two labels or more.

    Centres and sides improve each other: labels are ordered by how much nearer they are to the
    right centre, the rule cuts that order, each centre moves to the mean of its side.
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
    """The tree with every `levels` binary levels made one: nodes have up to 2^levels children.

    Fewer, wider steps to the same leaves, whose labels and order of siblings do not change.
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
    # Slots go by the order of the leaves, which may have become another one.
    order = np.concatenate([np.arange(a, b) for a, b in zip(first[leaf], end[leaf], strict=True)])
    sizes = (end - first)[leaf]
    end[leaf] = np.cumsum(sizes)
    first[leaf] = end[leaf] - sizes
    return TreeShape(first, end, leaf, np.array(depth), shape.labels[order])
