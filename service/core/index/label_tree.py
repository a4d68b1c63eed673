"""A forest of label trees behind the LabelIndex protocol; scores are probabilities.

Files, memory-mapped, made by `models.methods.tree`: `tree.json` says how scores are read and where
the trees begin, `tree.children.npy` (n_nodes, 2) and `tree.labels.npy` are the `Forest`, and
`tree.weights.npy` (items, dim) with `tree.bias.npy` hold a linear classifier for every node and
every label slot, children side by side. A label's probability is that of its own classifier times
that of its path to the power `path_weight`; a forest's is the mean over its trees. With
`path_weight` 0 the trees do not score but only choose what is scored.

An effort's `beam` is how many leaves are opened in each tree; without one all are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import IndexInfo
from service.bundle.strict_json import read_object
from service.core.arrays import open_array
from service.core.index.protocol import check_queries
from service.core.index.tree_beam import (
    PADDING,
    TRANSFORMS,
    Blocks,
    Costs,
    Forest,
    Ints,
    TreeBeam,
    pack,
    unpack,
)
from service.core.types import Float32Rows, Hits
from service.errors import BundleError, BundleMismatch

KIND: Final = "label-tree"
METRIC: Final = "probability"
BEAM: Final = "beam"
ABOUT_FILE: Final = "tree.json"
CHILDREN_FILE: Final = "tree.children.npy"
LABELS_FILE: Final = "tree.labels.npy"
WEIGHTS_FILE: Final = "tree.weights.npy"
BIAS_FILE: Final = "tree.bias.npy"
FILES: Final = (ABOUT_FILE, CHILDREN_FILE, LABELS_FILE, WEIGHTS_FILE, BIAS_FILE)
_PAIRS_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class DenseScorer:
    """Inner product with each child's weights, plus its bias.

    FAISS computes pair by pair without copying a row, each the same whatever is asked beside it.
    """

    queries: Float32Rows
    weights: Float32Rows
    bias: NDArray[np.float32]

    def __call__(self, blocks: Blocks) -> Costs:
        """Raw scores of all children."""
        scores = np.empty(len(blocks.items), np.float32)
        faiss.pairwise_indexed_inner_product(
            self.queries.shape[1],
            len(scores),
            faiss.swig_ptr(self.queries),
            faiss.swig_ptr(blocks.query),
            faiss.swig_ptr(self.weights),
            faiss.swig_ptr(blocks.items),
            faiss.swig_ptr(scores),
        )
        scores += self.bias[blocks.items]
        return scores


class LabelTreeIndex:
    """`efforts` maps an effort's name to its `beam`; one without opens every leaf."""

    kind = KIND

    def __init__(
        self,
        beam: TreeBeam,
        weights: Float32Rows,
        bias: NDArray[np.float32],
        efforts: Mapping[str, Mapping[str, int]],
    ) -> None:
        self.dim = int(weights.shape[1])
        self.n_rows = beam.forest.n_labels
        self._tree = beam
        self._weights = weights
        self._bias = bias
        forest = beam.forest
        self._n_leaves = int(forest.leaf.sum())
        self._widest = int((forest.end - forest.first)[forest.leaf].max())
        self._beams = {
            name: int(params.get(BEAM, self._n_leaves)) for name, params in efforts.items()
        }

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k rows by probability; a beam that reaches fewer than k labels is widened."""
        check_queries(queries, self.dim, k)
        beam = self._beams[effort]
        k = min(k, self.n_rows)
        # As in FaissIndex: lanes are the parallelism, and the count belongs to the calling thread.
        faiss.omp_set_num_threads(1)
        keys = np.empty((len(queries), k), np.int64)
        queries = np.ascontiguousarray(queries, np.float32)
        step = self._queries_at_once(beam)
        for start in range(0, len(queries), step):
            keys[start : start + step] = self._search(queries[start : start + step], k, beam)
        costs, rows = unpack(keys)
        # In double precision: rounded to single afterwards, exp cannot turn an order round.
        return Hits(rows, np.exp(-costs.astype(np.float64)).astype(np.float32))

    def search_among(self, queries: Float32Rows, rows: Ints, k: int) -> Hits:
        """Top k of `rows` by probability, over every leaf."""
        check_queries(queries, self.dim, k)
        faiss.omp_set_num_threads(1)
        k = min(k, len(rows))
        found = np.empty((len(queries), k), np.int64)
        queries = np.ascontiguousarray(queries, np.float32)
        step = self._queries_at_once(self._n_leaves)
        for start in range(0, len(queries), step):
            keys = self._search(queries[start : start + step], self.n_rows, self._n_leaves)
            kept = np.isin(unpack(keys)[1], rows)
            found[start : start + step] = keys[kept].reshape(len(keys), -1)[:, :k]
        costs, found_rows = unpack(found)
        return Hits(found_rows, np.exp(-costs.astype(np.float64)).astype(np.float32))

    def _queries_at_once(self, beam: int) -> int:
        scored = beam * self._widest * self._tree.forest.n_trees
        return max(1, _PAIRS_AT_ONCE // min(scored, len(self._bias)))

    def _search(self, queries: Float32Rows, k: int, beam: int) -> Ints:
        score = DenseScorer(queries, self._weights, self._bias)
        leaves = self._tree.leaves(score, len(queries), beam)
        found = self._tree.labels(leaves, score)
        if self._tree.forest.n_trees > 1:
            found = mean_over_trees(found, self._tree.forest.n_trees, self._tree.path_weight > 0)
        best = least(found, k)
        short = best[:, -1] == PADDING
        if short.any():
            wider = queries[short]
            step = self._queries_at_once(2 * beam)
            parts = range(0, len(wider), step)
            best[short] = np.concatenate(
                [self._search(wider[start : start + step], k, 2 * beam) for start in parts]
            )
        return best


def least(keys: Ints, k: int) -> Ints:
    """The k least of each row in rising order, padded where a row is shorter: (n, k)."""
    if keys.shape[1] < k:
        keys = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=PADDING)
    if keys.shape[1] > k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    return np.sort(keys, axis=1)


def mean_over_trees(keys: Ints, n_trees: int, missed_count: bool) -> Ints:
    """Label keys (n x n_trees, width) as one row a query: each label's mean probability.

    A tree whose beam did not reach a label says 0 of it where `missed_count`, or else nothing.
    """
    together = keys.reshape(-1, n_trees * keys.shape[1])
    costs, rows = unpack(together)
    rows = np.where(together == PADDING, PADDING, rows)
    # By label; equal ones stay in the order of the costs, so that a sum has one result.
    order = np.lexsort((costs, rows), axis=-1)
    costs, rows = np.take_along_axis(costs, order, 1), np.take_along_axis(rows, order, 1)
    begins = np.ones(rows.shape, np.bool_)
    begins[:, 1:] = rows[:, 1:] != rows[:, :-1]
    starts = np.flatnonzero(begins)
    sums = np.add.reduceat(np.exp(-costs.astype(np.float64)).reshape(-1), starts)
    over = n_trees if missed_count else np.diff(starts, append=rows.size)
    with np.errstate(divide="ignore"):
        mean = -np.log(np.minimum(sums / over, 1.0)).astype(np.float32)
    merged = np.full(rows.shape, PADDING)
    labels = rows.reshape(-1)[starts]
    flat = np.where(labels == PADDING, PADDING, pack(mean, labels & 0xFFFFFFFF))
    merged.reshape(-1)[starts] = flat
    return merged


def open_label_tree(
    folder: Path, info: IndexInfo, dim: int, efforts: Mapping[str, Mapping[str, int]]
) -> LabelTreeIndex:
    """Memory-map a forest; raises BundleMismatch where it is not what the manifest says."""
    tree, weights, bias = read_forest(folder)
    if (tree.forest.n_labels, weights.shape[1]) != (info.n_rows, dim):
        raise BundleMismatch(
            f"{folder / WEIGHTS_FILE} is for {tree.forest.n_labels} labels and vectors of "
            f"{weights.shape[1]}, the manifest says {info.n_rows} of {dim}"
        )
    return LabelTreeIndex(tree, weights, bias, efforts)


def read_forest(folder: Path) -> tuple[TreeBeam, Float32Rows, NDArray[np.float32]]:
    """The forest in a folder with weights and bias, memory-mapped; raises BundleMismatch."""
    about = _about(folder / ABOUT_FILE)
    children = open_array(folder / CHILDREN_FILE, np.int32, 2)
    if children.shape[1] != 2:
        raise BundleMismatch(f"{folder / CHILDREN_FILE} has {children.shape[1]} columns, not 2")
    labels = open_array(folder / LABELS_FILE, np.int32, 1)
    weights = open_array(folder / WEIGHTS_FILE, np.float32, 2)
    bias = open_array(folder / BIAS_FILE, np.float32, 1)
    forest = Forest(
        np.ascontiguousarray(children[:, 0], np.int64),
        np.ascontiguousarray(children[:, 1], np.int64),
        labels.astype(np.int64),
        np.asarray(about["roots"], np.int64),
    )
    if (wrong := _fault(forest, len(weights), len(bias))) is not None:
        raise BundleMismatch(f"{folder}: the label tree is broken: {wrong}")
    return TreeBeam(forest, about["transform"], float(about["path_weight"])), weights, bias


def _about(path: Path) -> dict[str, Any]:
    try:
        about = read_object(path)
        known = about["transform"] in TRANSFORMS and 0 <= float(about["path_weight"]) <= 1
        known = known and len(about["roots"]) > 0 and all(type(r) is int for r in about["roots"])
    except (BundleError, ValueError, KeyError, TypeError) as exc:
        raise BundleMismatch(f"{path} is not the description of a label tree: {exc}") from exc
    if not known:
        raise BundleMismatch(f"{path}: transform, path_weight or roots are none that this code has")
    return dict(about)


def _fault(forest: Forest, n_weights: int, n_bias: int) -> str | None:
    """What would make a search fail or read beyond an array; None where all is well."""
    n_nodes, n_items = forest.n_nodes, forest.n_nodes + len(forest.labels)
    if n_weights != n_items or n_bias != n_items:
        return f"{n_items} nodes and labels, {n_weights} rows of weights, {n_bias} of bias"
    if len(forest.labels) == 0 or len(forest.labels) % forest.n_trees:
        return f"{len(forest.labels)} label slots for {forest.n_trees} trees"
    by_tree = np.sort(forest.labels.reshape(forest.n_trees, -1), axis=1)
    if (by_tree != np.arange(forest.n_labels)).any():
        return "a tree does not hold every label once"
    if ((forest.roots < 0) | (forest.roots >= n_nodes)).any():
        return "a root is no node"
    nodes = np.arange(n_nodes)
    if ((forest.first <= nodes) | (forest.end <= forest.first) | (forest.end > n_items)).any():
        return "a node's children do not stand behind it"
    if ((forest.first < n_nodes) & (forest.end > n_nodes)).any():
        return "a node has nodes and labels for children"
    parents = np.zeros(n_items + 1, np.int64)
    np.add.at(parents, forest.first, 1)
    np.add.at(parents, forest.end, -1)
    parents = np.cumsum(parents[:-1])
    parents[forest.roots] += 1
    if (parents != 1).any():
        return "an item is no node's child, or that of several"
    return None
