"""The sparse arm: label trees over TF-IDF rows, with linear SVMs as Parabel has them.

Each node and label gets an L2-regularised squared-hinge classifier by LIBLINEAR (through
scikit-learn, extra `peers`), trained on the points that reach its parent; weights below a threshold
are dropped. Inference multiplies chunk by chunk (MSCM: Etter et al., WWW 2022): a query's features
are matched with those of a parent once, for all its children together, and only for parents that
survive the beam. The search is `service.core.index.tree_beam`, as in the dense arm. Not served: the
service makes embeddings. For comparisons: `tests.bench.parabel_check`.
"""

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from models.extras import need
from models.label_trees.classifiers import reached
from models.label_trees.shape import Ints, TreeShape
from service.core.index.tree_beam import PADDING, Blocks, Costs, Forest, TreeBeam, unpack

KEPT_FROM: Final = 0.1  # Parabel's threshold for weights
NEVER: Final = -1e3  # bias of an item that no point has: its probability is 0


@dataclass(frozen=True, slots=True)
class Chunks:
    """The classifiers of all items, one chunk a parent, for products with sparse queries.

    Row r of the chunks belongs to the parent and feature of `keys[r] = parent * width + feature`;
    its entries `starts[r]` to `starts[r + 1]` are (`offsets`, `values`): which of the parent's
    children, counted from the first, and the weight. Keys rise.
    """

    keys: Ints
    starts: Ints
    offsets: Ints
    values: NDArray[np.float32]
    bias: NDArray[np.float32]
    width: int

    @classmethod
    def of(cls, weights: csr_array, bias: NDArray[np.float32], forest: Forest) -> "Chunks":
        """From (n_items, n_features) weights, items numbered as in the forest."""
        sizes = forest.end - forest.first
        parent = np.full(weights.shape[0], -1)  # a root has none, and no classifier
        offset = np.zeros(weights.shape[0], np.int64)
        children = np.repeat(forest.first - np.cumsum(sizes) + sizes, sizes)
        children += np.arange(len(children))
        parent[children] = np.repeat(np.arange(forest.n_nodes), sizes)
        offset[children] = children - np.repeat(forest.first, sizes)
        cells = weights.tocoo()
        items, features = (np.asarray(place, np.int64) for place in cells.coords)
        keys = parent[items] * weights.shape[1] + features
        order = np.lexsort((offset[items], keys))
        order = order[parent[items[order]] >= 0]
        keys = keys[order]
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        return cls(
            keys[begins],
            np.append(begins, len(keys)),
            offset[items][order],
            cells.data[order].astype(np.float32),
            bias,
            weights.shape[1],
        )


@dataclass(frozen=True, slots=True)
class ChunkScorer:
    """A scorer for sparse queries (n, n_features)."""

    queries: csr_array
    chunks: Chunks

    def __call__(self, blocks: Blocks) -> Costs:
        """Products of all (query, parent) pairs with the parent's chunk, plus bias."""
        chunks = self.chunks
        if not len(chunks.keys):
            return chunks.bias[blocks.items]
        # The first child of each pair, and its query: a pair's children stand together.
        first = np.searchsorted(blocks.pair, np.arange(len(blocks.node)))
        query = blocks.query[first]
        pair, places = _ranges(
            self.queries.indptr[query].astype(np.int64),
            self.queries.indptr[query + 1].astype(np.int64),
        )
        wanted = blocks.node[pair] * chunks.width + self.queries.indices[places]
        row = np.minimum(np.searchsorted(chunks.keys, wanted), len(chunks.keys) - 1)
        matched = np.flatnonzero(chunks.keys[row] == wanted)
        row = row[matched]
        which, entries = _ranges(chunks.starts[row], chunks.starts[row + 1])
        source = matched[which]
        child = first[pair[source]] + chunks.offsets[entries]
        products = self.queries.data[places[source]] * chunks.values[entries]
        sums = np.bincount(child, weights=products, minlength=len(blocks.items))
        return sums.astype(np.float32) + chunks.bias[blocks.items]


def _ranges(start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """All places from each start up to before its end, and which range each is of.

    >>> _ranges(np.array([3, 0]), np.array([5, 1]))
    (array([0, 0, 1]), array([3, 4, 0]))
    """
    sizes = end - start
    which = np.repeat(np.arange(len(sizes)), sizes)
    return which, np.arange(len(which)) + (start - np.cumsum(sizes) + sizes)[which]


def fit_svms(
    points: csr_array,
    shape: TreeShape,
    labels: csr_array,
    *,
    cost: float = 1.0,
    tolerance: float = 0.1,
    kept_from: float = KEPT_FROM,
) -> tuple[csr_array, NDArray[np.float32]]:
    """Weights (n_items, n_features) and bias of all nodes and label slots of one tree.

    One solver call an item. Raises PeerMissing without scikit-learn.
    """
    linear_svc = need("sklearn.svm").LinearSVC
    unconverged = need("sklearn.exceptions").ConvergenceWarning
    paths = reached(shape, labels)
    items = csc_array(paths.items)
    n_items = items.shape[1]
    bias = np.full(n_items, NEVER, np.float32)
    columns, values, counts = [], [], np.zeros(n_items, np.int64)
    of_parent = -1
    rows, taken = np.empty(0, np.int64), points
    for item in range(1, n_items):
        parent = int(paths.parent[item])
        if parent != of_parent:
            of_parent = parent
            rows = np.sort(items.indices[items.indptr[parent] : items.indptr[parent + 1]])
            taken = points[rows]
        positive = items.indices[items.indptr[item] : items.indptr[item + 1]]
        if not len(positive):
            continue
        if len(positive) == len(rows):
            bias[item] = 1.0  # nothing to tell it apart from: certain under the hinge
            continue
        solver = linear_svc(C=cost, tol=tolerance, max_iter=20, random_state=0)
        with warnings.catch_warnings():
            # Parabel stops LIBLINEAR early too: its last digits are dropped with the small weights.
            warnings.simplefilter("ignore", unconverged)
            solver.fit(taken, np.isin(rows, positive))
        weights = solver.coef_[0]
        kept = np.flatnonzero(np.abs(weights) >= kept_from)
        columns.append(kept)
        values.append(weights[kept])
        counts[item] = len(kept)
        bias[item] = solver.intercept_[0]
    starts = np.append(0, np.cumsum(counts))
    cells = (np.concatenate(values).astype(np.float32), np.concatenate(columns), starts)
    return csr_array(cells, shape=(n_items, points.shape[1])), bias


@dataclass(frozen=True, slots=True)
class SparseTree:
    """One tree with its chunks, to be searched."""

    beam: TreeBeam
    chunks: Chunks

    def search(self, queries: csr_array, beam: int) -> csr_array:
        """Probability of every label that the beam reaches, csr (n, n_labels)."""
        score = ChunkScorer(queries, self.chunks)
        leaves = self.beam.leaves(score, queries.shape[0], beam)
        found = self.beam.labels(leaves, score)
        row, column = np.nonzero(found != PADDING)
        costs, labels = unpack(found[row, column])
        cells = (np.exp(-costs.astype(np.float64)), (row, labels))
        return csr_array(cells, shape=(queries.shape[0], self.beam.forest.n_labels))
