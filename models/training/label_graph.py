"""Clusters of labels, and the edges from clusters to labels that ELIAS learns (arXiv 2210.08410).

Edges are a table (n_clusters, width) of label rows, padded with `n_labels`, which is no label row.
The functions here are of arrays: `models.methods.elias` trains the graph, and
`service.core.index.learned_graph` searches it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from models.training.clusters import clustered_order

_LABELS_IN_CLUSTER = 100
"""Our choice: with `elias.beam` 5 a query scores up to about 500 labels while edges are fixed."""


@dataclass(frozen=True, slots=True)
class LabelGraph:
    """Clusters and their weighted edges to labels, in the form that the index stores.

    A cluster's score is min(1, alpha * softmax(<query, cluster> + bias)), with `clusters`
    (n_clusters, dim) and `bias` (n_clusters,). Its edges and their weights are a row of `edges` and
    of `weights`, both (n_clusters, width).
    """

    clusters: NDArray[np.float32]
    bias: NDArray[np.float32]
    edges: NDArray[np.int32]
    weights: NDArray[np.float32]
    alpha: float


def usual_clusters(n_labels: int) -> int:
    """The default number of clusters: a power of two, for at most 100 labels in each.

    >>> usual_clusters(12_476), usual_clusters(60)
    (128, 2)
    """
    return max(2, 2 ** math.ceil(math.log2(max(1.0, n_labels / _LABELS_IN_CLUSTER))))


def label_vectors_of(embeddings: NDArray[np.float32], labels: csr_array) -> NDArray[np.float32]:
    """A vector for each label, (n_labels, dim): the unit sum of its points' `embeddings` (n, dim).

    `labels` is (n, n_labels). A label without points gets the zero vector. PECOS (arXiv 2010.05878)
    calls this PIFA.
    """
    sums = csr_array(labels.T) @ embeddings
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.maximum(norms, 1e-12), np.float32)


def balanced_clusters(
    vectors: NDArray[np.float32], n_clusters: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Edges (at most n_clusters, width) of clusters of one size; each label is in one cluster."""
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
    """The `kappa` heaviest edges of each cluster, and their weights, both (n_clusters, kappa).

    `clusters` and `scores` (n, m) are the best clusters of the points of `labels` (n, n_labels).
    The weight of an edge is the sum of the cluster's scores over the label's points. In a cluster,
    edges that are a label's heaviest one come first. So a search can reach each label with a point,
    as long as no cluster has more than `kappa` such edges.
    """
    n, n_labels = labels.shape
    points = np.repeat(np.arange(n), clusters.shape[1])
    cluster_scores = coo_array((scores.ravel(), (clusters.ravel(), points)), shape=(n_clusters, n))
    sums = (csr_array(cluster_scores) @ csr_array(labels)).tocoo()  # (n_clusters, n_labels)
    cluster, label = (part.astype(np.int64) for part in sums.coords)
    weight = sums.data.astype(np.float64)
    best = np.zeros(n_labels)
    np.maximum.at(best, label, weight)
    order = np.lexsort((label, -weight, weight < best[label], cluster))
    cluster, label, weight = cluster[order], label[order], weight[order]
    place = np.arange(len(cluster)) - np.searchsorted(cluster, cluster)
    inside = place < kappa
    edges = np.full((n_clusters, kappa), n_labels)
    edges[cluster[inside], place[inside]] = label[inside]
    weights = np.zeros((n_clusters, kappa), np.float32)
    weights[cluster[inside], place[inside]] = weight[inside]
    return edges, weights
