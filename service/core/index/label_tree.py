"""A forest of label trees behind the LabelIndex protocol; scores are probabilities.

`models.methods.tree` writes the files, which are memory-mapped. `tree.json` holds the roots of the
trees and the parameters of their scores. `tree.children.npy` (n_nodes, 2) and `tree.labels.npy` are
the `Forest`. `tree.weights.npy` (n_items, dim) and `tree.bias.npy` hold a linear classifier for
every node and every label slot; the children of a node stand side by side.

A label's probability in a tree is that of its own classifier times that of its path to the power
`path_weight`. Its probability in a forest is the mean over the trees. With `path_weight` 0 the
trees only choose the labels that are scored.

An effort's `beam` is the number of leaves that a search opens in each tree; without it, all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import IndexInfo
from service.bundle.plain_files import read_object
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
"""Most (query, item) pairs scored at once. A choice: more take more memory, fewer more steps."""


@dataclass(frozen=True, slots=True)
class DenseScorer:
    """Scores items by the inner product of query and weights, plus the bias.

    FAISS computes every pair by itself and copies no row, so a score does not depend on the batch.
    """

    queries: Float32Rows
    weights: Float32Rows
    bias: NDArray[np.float32]

    def __call__(self, blocks: Blocks) -> Costs:
        """The raw scores of all items, (len(blocks.items),)."""
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
    """A forest as a LabelIndex; `efforts` maps an effort's name to its `beam`, if it has one."""

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
        """Top k rows of each query by probability.

        If a beam reaches fewer than k labels, the search doubles it for that query.
        """
        check_queries(queries, self.dim, k)
        beam = self._beams[effort]
        k = min(k, self.n_rows)
        # See FaissIndex.search: one OpenMP thread for this calling thread.
        faiss.omp_set_num_threads(1)
        keys = np.empty((len(queries), k), np.int64)
        queries = np.ascontiguousarray(queries, np.float32)
        step = self._queries_at_once(beam)
        for start in range(0, len(queries), step):
            keys[start : start + step] = self._search(queries[start : start + step], k, beam)
        costs, rows = unpack(keys)
        # In double precision, because exp in single precision could reverse two close scores.
        return Hits(rows, np.exp(-costs.astype(np.float64)).astype(np.float32))

    def search_among(self, queries: Float32Rows, rows: Ints, k: int) -> Hits:
        """Top k of `rows`, which rise, by probability; it opens every leaf."""
        check_queries(queries, self.dim, k)
        faiss.omp_set_num_threads(1)
        k = min(k, len(rows))
        top_keys = np.empty((len(queries), k), np.int64)
        queries = np.ascontiguousarray(queries, np.float32)
        step = self._queries_at_once(self._n_leaves)
        for start in range(0, len(queries), step):
            keys = self._search(queries[start : start + step], self.n_rows, self._n_leaves)
            eligible = np.isin(unpack(keys)[1], rows)
            top_keys[start : start + step] = keys[eligible].reshape(len(keys), -1)[:, :k]
        costs, top_rows = unpack(top_keys)
        return Hits(top_rows, np.exp(-costs.astype(np.float64)).astype(np.float32))

    def _queries_at_once(self, beam: int) -> int:
        n_items = beam * self._widest * self._tree.forest.n_trees
        return max(1, _PAIRS_AT_ONCE // min(n_items, len(self._bias)))

    def _search(self, queries: Float32Rows, k: int, beam: int) -> Ints:
        score = DenseScorer(queries, self._weights, self._bias)
        leaves = self._tree.leaves(score, len(queries), beam)
        keys = self._tree.labels(leaves, score)
        if self._tree.forest.n_trees > 1:
            keys = mean_over_trees(keys, self._tree.forest.n_trees, self._tree.path_weight > 0)
        best = least(keys, k)
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
    """The k least keys of each row, rising: (n, k), padded if a row has fewer."""
    if keys.shape[1] < k:
        keys = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=PADDING)
    if keys.shape[1] > k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    return np.sort(keys, axis=1)


def mean_over_trees(keys: Ints, n_trees: int, count_misses: bool) -> Ints:
    """Merge the trees' label keys (n x n_trees, width) to one row a query, by mean probability.

    With `count_misses` a label counts as 0 in a tree whose beam did not reach it; else the mean is
    over the trees that did.
    """
    tree_keys = keys.reshape(-1, n_trees * keys.shape[1])
    costs, rows = unpack(tree_keys)
    rows = np.where(tree_keys == PADDING, PADDING, rows)
    # Sort by label, then by cost: a sum in a fixed order always rounds alike.
    order = np.lexsort((costs, rows), axis=-1)
    costs, rows = np.take_along_axis(costs, order, 1), np.take_along_axis(rows, order, 1)
    begins = np.ones(rows.shape, np.bool_)
    begins[:, 1:] = rows[:, 1:] != rows[:, :-1]
    starts = np.flatnonzero(begins)
    sums = np.add.reduceat(np.exp(-costs.astype(np.float64)).reshape(-1), starts)
    over = n_trees if count_misses else np.diff(starts, append=rows.size)
    with np.errstate(divide="ignore"):
        mean = -np.log(np.minimum(sums / over, 1.0)).astype(np.float32)
    mean_keys = np.full(rows.shape, PADDING)
    labels = rows.reshape(-1)[starts]
    flat = np.where(labels == PADDING, PADDING, pack(mean, labels & 0xFFFFFFFF))
    mean_keys.reshape(-1)[starts] = flat
    return mean_keys


def open_label_tree(
    folder: Path, info: IndexInfo, dim: int, efforts: Mapping[str, Mapping[str, int]]
) -> LabelTreeIndex:
    """Memory-map a forest; raises BundleMismatch if it differs from the manifest."""
    tree, weights, bias = read_forest(folder)
    if (tree.forest.n_labels, weights.shape[1]) != (info.n_rows, dim):
        raise BundleMismatch(
            f"{folder / WEIGHTS_FILE} is for {tree.forest.n_labels} labels and vectors of "
            f"{weights.shape[1]}, the manifest says {info.n_rows} of {dim}"
        )
    return LabelTreeIndex(tree, weights, bias, efforts)


def read_forest(folder: Path) -> tuple[TreeBeam, Float32Rows, NDArray[np.float32]]:
    """Memory-map a folder's forest, weights (n_items, dim) and bias (n_items,).

    Raises BundleMismatch.
    """
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
    if (fault := _fault(forest, len(weights), len(bias))) is not None:
        raise BundleMismatch(f"{folder}: the label tree is broken: {fault}")
    return TreeBeam(forest, about["transform"], float(about["path_weight"])), weights, bias


def _about(path: Path) -> dict[str, Any]:
    try:
        about = read_object(path)
        valid = about["transform"] in TRANSFORMS and 0 <= float(about["path_weight"]) <= 1
        valid = valid and len(about["roots"]) > 0 and all(type(r) is int for r in about["roots"])
    except (BundleError, ValueError, KeyError, TypeError) as exc:
        raise BundleMismatch(f"{path} is not the description of a label tree: {exc}") from exc
    if not valid:
        raise BundleMismatch(
            f"{path}: transform must be one of {', '.join(TRANSFORMS)}, path_weight in [0, 1], and "
            "roots a list of whole numbers"
        )
    return dict(about)


def _fault(forest: Forest, n_weights: int, n_bias: int) -> str | None:
    """A fault that would make a search fail or read beyond an array; None if there is none."""
    n_nodes, n_items = forest.n_nodes, forest.n_nodes + len(forest.labels)
    if n_weights != n_items or n_bias != n_items:
        return f"{n_items} nodes and labels, {n_weights} rows of weights, {n_bias} of bias"
    if len(forest.labels) == 0 or len(forest.labels) % forest.n_trees:
        return f"{len(forest.labels)} label slots for {forest.n_trees} trees"
    by_tree = np.sort(forest.labels.reshape(forest.n_trees, -1), axis=1)
    if (by_tree != np.arange(forest.n_labels)).any():
        return "a tree does not hold every label once"
    if ((forest.roots < 0) | (forest.roots >= n_nodes)).any():
        return "a root is not a node"
    nodes = np.arange(n_nodes)
    if ((forest.first <= nodes) | (forest.end <= forest.first) | (forest.end > n_items)).any():
        return "a node's children do not come after it"
    if ((forest.first < n_nodes) & (forest.end > n_nodes)).any():
        return "a node has nodes and labels for children"
    parents = np.zeros(n_items + 1, np.int64)
    np.add.at(parents, forest.first, 1)
    np.add.at(parents, forest.end, -1)
    parents = np.cumsum(parents[:-1])
    parents[forest.roots] += 1
    if (parents != 1).any():
        return "an item is not the child of exactly one node"
    return None
