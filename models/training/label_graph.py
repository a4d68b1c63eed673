"""From label vectors to clusters, and from clusters to the edges that may be learned (ELIAS).

Edges are a table (n_clusters, width) of label rows, filled up with `n_labels`, which is no label.
Arrays only: who trains and who serves them is elsewhere.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from models.training.clusters import clustered_order

_LABELS_IN_CLUSTER = 100


@dataclass(frozen=True, slots=True)
class LabelGraph:
    """Clusters of queries and their weighed edges to labels, as they are searched.

    A cluster's score is min(1, alpha * softmax(<query, cluster> + bias)), its edges and their
    weights are a row of `edges` and `weights` (n_clusters, width).
    """

    clusters: NDArray[np.float32]
    bias: NDArray[np.float32]
    edges: NDArray[np.int32]
    weights: NDArray[np.float32]
    alpha: float


def usual_clusters(n_labels: int) -> int:
    """A power of two with at most a hundred labels in each.

    >>> usual_clusters(12_476), usual_clusters(60)
    (128, 2)
    """
    return max(2, 2 ** math.ceil(math.log2(max(1.0, n_labels / _LABELS_IN_CLUSTER))))


def label_vectors_of(embeddings: NDArray[np.float32], labels: csr_array) -> NDArray[np.float32]:
    """Unit sums (n_labels, dim) of the embeddings (n, dim) of each label's points (PIFA).

    A label without points is the zero vector.
    """
    sums = csr_array(labels.T) @ embeddings
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.maximum(norms, 1e-12), np.float32)


def balanced_clusters(
    vectors: NDArray[np.float32], n_clusters: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Edges (n_clusters or fewer, width) of clusters of one size, each label in one of them."""
    n_labels = len(vectors)
    size = -(-n_labels // n_clusters)
    order = clustered_order(vectors, size, generator)
    edges = np.full(-(-n_labels // size) * size, n_labels)
    edges[:n_labels] = order
    return edges.reshape(-1, size)


def centres(vectors: NDArray[np.float32], edges: NDArray[np.int64]) -> NDArray[np.float32]:
    """Unit mean (n_clusters, dim) of the vectors of each cluster's labels."""
    padded = np.concatenate([vectors, np.zeros((1, vectors.shape[1]), np.float32)])
    sums = padded[edges].sum(axis=1)
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))


def common_edges(
    labels: csr_array,
    clusters: NDArray[np.int64],
    scores: NDArray[np.float32],
    n_clusters: int,
    kappa: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `kappa` edges of each cluster along which most passes, (n_clusters, kappa), and how much.

    `clusters` and `scores` (n, m) are the best clusters of the points of `labels` (n, n_labels).
    An edge is worth the summed scores of the label's points; a label's best edge comes before all
    edges that are not, so that every label with a point can be reached.
    """
    n, n_labels = labels.shape
    points = np.repeat(np.arange(n), clusters.shape[1])
    passed = coo_array((scores.ravel(), (clusters.ravel(), points)), shape=(n_clusters, n))
    worth = (csr_array(passed) @ csr_array(labels)).tocoo()  # (n_clusters, n_labels)
    cluster, label = (part.astype(np.int64) for part in worth.coords)
    amount = worth.data.astype(np.float64)
    best = np.zeros(n_labels)
    np.maximum.at(best, label, amount)
    order = np.lexsort((label, -amount, amount < best[label], cluster))
    cluster, label, amount = cluster[order], label[order], amount[order]
    place = np.arange(len(cluster)) - np.searchsorted(cluster, cluster)
    kept = place < kappa
    edges = np.full((n_clusters, kappa), n_labels)
    edges[cluster[kept], place[kept]] = label[kept]
    passing = np.zeros((n_clusters, kappa), np.float32)
    passing[cluster[kept], place[kept]] = amount[kept]
    return edges, passing
