"""A learned graph over the labels (ELIAS, arXiv 2210.08410): clusters, edges and label vectors.

    cluster score  s_c  = min(1, alpha * softmax over clusters of <q, cluster_c> + bias_c)
    path score     p_l  = the largest s_c * a_cl over the clusters c that have an edge to label l
    score(l)            = sigmoid(<q, label_l> + logit_bias) * p_l, a probability

An effort visits the `beam` best clusters and scores the `shortlist` labels with the best paths; an
effort without parameters visits everything. Each step handles the whole batch. One integer holds a
label and its score, so that a plain sort removes repeats and ranks, ties by row
(docs/decisions/0013). Arrays are memory-mapped; `models.index.learned_graph` writes them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import IndexInfo
from service.bundle.plain_files import read_object
from service.core.arrays import open_array
from service.core.index.protocol import check_queries
from service.core.types import Float32Rows, Hits
from service.errors import BundleError, BundleMismatch

_CELLS_AT_ONCE: Final = 1 << 20
"""Most (query, edge) or (query, label) pairs at once. A choice: more take more memory."""
_LOW: Final = 0xFFFF_FFFF
_STEEP: Final = 80.0
"""A logit beyond which the sigmoid is 0 or 1 in fp32."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Clusters (C, dim) with `bias` (C,), `edges` (C, width) with `weights`, `labels` (n, dim).

    `edges` holds label rows; n marks an empty place, whose weight is 0.
    """

    clusters: Float32Rows
    bias: NDArray[np.float32]
    edges: NDArray[np.int32]
    weights: Float32Rows
    labels: Float32Rows
    alpha: float
    logit_bias: float


class LearnedGraphIndex:
    """A learned graph as a LabelIndex.

    `efforts` maps an effort's name to `beam` and `shortlist`, or to nothing for an exhaustive
    search.
    """

    kind = "learned-graph"

    def __init__(self, graph: Graph, efforts: Mapping[str, Mapping[str, int]]) -> None:
        self._graph = graph
        self.n_rows, self.dim = (int(size) for size in graph.labels.shape)
        self._params = dict(efforts)
        # The edges in the order of labels, for a search that visits all of them.
        real = np.flatnonzero(graph.edges.ravel() < self.n_rows)
        by_label = real[np.argsort(graph.edges.ravel()[real], kind="stable")]
        self._clusters_by_label = by_label // graph.edges.shape[1]
        self._weights_by_label = graph.weights.ravel()[by_label]
        self._reached, self._starts = np.unique(graph.edges.ravel()[by_label], return_index=True)

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k rows of each query by probability.

        A query whose beam reaches fewer than k labels gets an exhaustive answer.
        """
        check_queries(queries, self.dim, k)
        k = min(k, self.n_rows)
        params = self._params[effort]
        faiss.omp_set_num_threads(1)  # holds for this thread; lanes are the parallelism
        queries = np.ascontiguousarray(queries, np.float32)
        at_once = max(1, _CELLS_AT_ONCE // self._cells_a_query(params))
        keys = [
            self._keys(queries[start : start + at_once], k, params)
            for start in range(0, len(queries), at_once)
        ]
        return self._hits(np.concatenate([np.empty((0, k), np.int64), *keys]))

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of `rows`, which rise, by probability over all clusters."""
        check_queries(queries, self.dim, k)
        faiss.omp_set_num_threads(1)
        at_once = max(1, _CELLS_AT_ONCE // self._cells_a_query({}))
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(rows))
        parts = [np.empty((0, k), np.int64)]
        for start in range(0, len(queries), at_once):
            keys = self._keys(queries[start : start + at_once], self.n_rows, {})
            eligible = np.isin(self._rows(keys), rows)
            parts.append(keys[eligible].reshape(len(keys), -1)[:, len(rows) - k :])
        return self._hits(np.concatenate(parts))

    def vectors(self, rows: NDArray[np.int64]) -> Float32Rows:
        """The label vectors (n, dim) of `rows`."""
        return np.asarray(self._graph.labels[rows])

    def _hits(self, keys: NDArray[np.int64]) -> Hits:
        """The answer of keys (n, k) that rise."""
        keys = keys[:, ::-1]
        return Hits(np.ascontiguousarray(self._rows(keys)), np.ascontiguousarray(_high(keys)))

    def _cells_a_query(self, params: Mapping[str, int]) -> int:
        if not params:
            return max(self.n_rows, len(self._weights_by_label))
        return params["beam"] * int(self._graph.edges.shape[1])

    def _keys(self, queries: Float32Rows, k: int, params: Mapping[str, int]) -> NDArray[np.int64]:
        """The k best labels of each query as keys (n, k), rising."""
        logits = _products(queries, self._graph.clusters, _all(queries, self._graph.clusters))
        logits += self._graph.bias
        scores = self._cluster_scores(logits)
        if not params:
            return self._all_keys(queries, scores, k)
        beam = min(params["beam"], logits.shape[1])
        clusters = np.argpartition(logits, -beam, axis=1)[:, -beam:]
        shortlist = self._shortlist(scores, clusters, max(k, params["shortlist"]))
        if shortlist.shape[1] < k:
            return self._all_keys(queries, scores, k)
        best = _best(self._rescore(queries, shortlist), k)
        short = best[:, 0] == 0  # the beam reaches fewer than k labels
        if short.any():
            best[short] = self._all_keys(queries[short], scores[short], k)
        return best

    def _cluster_scores(self, logits: Float32Rows) -> Float32Rows:
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = weights / weights.sum(axis=1, keepdims=True)
        return np.asarray(np.minimum(np.float32(self._graph.alpha) * shares, np.float32(1)))

    def _shortlist(
        self, scores: Float32Rows, clusters: NDArray[np.int64], size: int
    ) -> NDArray[np.int64]:
        """Keys (n, size or fewer) of the labels with the best paths over clusters (n, beam)."""
        graph, n = self._graph, len(scores)
        paths = np.take_along_axis(scores, clusters, axis=1)[:, :, None] * graph.weights[clusters]
        keys = graph.edges[clusters].astype(np.int64) << 32
        keys |= paths.view(np.int32)
        keys = np.sort(keys.reshape(n, -1), axis=1)  # by label, its best path last
        labels = keys >> 32
        last = np.ones(labels.shape, np.bool_)
        np.not_equal(labels[:, 1:], labels[:, :-1], out=last[:, :-1])
        bits = keys & _LOW
        is_candidate = last & (labels < self.n_rows) & (bits > 0)
        return _best(np.where(is_candidate, bits << 32 | self.n_rows - labels, 0), size)

    def _rescore(self, queries: Float32Rows, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The keys with the labels' scores in place of those of their paths."""
        rows = np.where(keys > 0, self._rows(keys), -1)
        logits = _products(queries, self._graph.labels, rows)
        scores = self._probabilities(logits) * _high(keys)
        return np.where(keys > 0, _key(scores, keys & _LOW), 0)

    def _all_keys(self, queries: Float32Rows, scores: Float32Rows, k: int) -> NDArray[np.int64]:
        """Keys (n, k) of the k best of all labels; a label that no edge reaches has score 0."""
        along = scores[:, self._clusters_by_label] * self._weights_by_label
        paths = np.zeros((len(queries), self.n_rows), np.float32)
        if len(self._reached):
            paths[:, self._reached] = np.maximum.reduceat(along, self._starts, axis=1)
        logits = _products(queries, self._graph.labels, _all(queries, self._graph.labels))
        keys = _key(self._probabilities(logits) * paths, self.n_rows - np.arange(self.n_rows))
        return _best(keys, k)

    def _probabilities(self, logits: Float32Rows) -> Float32Rows:
        steep = np.clip(logits + np.float32(self._graph.logit_bias), -_STEEP, _STEEP)
        return np.asarray(np.float32(1) / (np.float32(1) + np.exp(-steep)))

    def _rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(self.n_rows - (keys & _LOW))


def _key(scores: Float32Rows, low: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys: the bits of the score in the upper half, `low` (n_rows less the row) in the lower.

    Scores are not negative, so their bits have the order of their values. `low` breaks ties.
    """
    return scores.view(np.int32).astype(np.int64) << 32 | low


def _high(keys: NDArray[np.int64]) -> Float32Rows:
    return (keys >> 32).astype(np.int32).view(np.float32)


def _best(keys: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The k largest keys of each row, rising."""
    if k < keys.shape[1]:
        keys = np.partition(keys, -k, axis=1)[:, -k:]
    return np.sort(keys, axis=1)


def _all(queries: Float32Rows, vectors: Float32Rows) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(len(vectors)), (len(queries), len(vectors)))


def _products(queries: Float32Rows, vectors: Float32Rows, rows: NDArray[np.int64]) -> Float32Rows:
    """Inner products (n, m) of queries (n, dim) with the vectors in rows (n, m); row -1 gives 0.

    FAISS computes every product by itself and copies no vector, so none depends on the batch.
    """
    rows = np.ascontiguousarray(rows)
    products = np.zeros(rows.shape, np.float32)
    faiss.fvec_inner_products_by_idx(
        faiss.swig_ptr(products),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        queries.shape[1],
        *rows.shape,
    )
    return products


def open_learned_graph(
    folder: Path, info: IndexInfo, dim: int, efforts: Mapping[str, Mapping[str, int]]
) -> LearnedGraphIndex:
    """Map the arrays of a learned graph; raises BundleMismatch if they do not fit together."""
    if len(info.files) != 6:
        raise BundleMismatch(f"{folder}: a learned-graph has six files, found {info.files}")
    settings_path, *paths = (folder / name for name in info.files)
    alpha, logit_bias = _settings(settings_path)
    clusters, bias, edges, weights, labels = (
        open_array(path, dtype, n_axes)
        for path, dtype, n_axes in zip(
            paths,
            (np.float32, np.float32, np.int32, np.float32, np.float32),
            (2, 1, 2, 2, 2),
            strict=True,
        )
    )
    n_clusters = len(clusters)
    expected = [
        (n_clusters, dim),
        (n_clusters,),
        (n_clusters, edges.shape[1]),
        edges.shape,
        (info.n_rows, dim),
    ]
    for path, array, shape in zip(
        paths, (clusters, bias, edges, weights, labels), expected, strict=True
    ):
        if array.shape != shape:
            raise BundleMismatch(f"{path} has shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise BundleMismatch(f"{path} holds NaN or infinite values")
    _check_edges(paths[2], paths[3], edges, weights, info.n_rows)
    for name, params in efforts.items():
        if params and not (params.get("beam", 0) > 0 and params.get("shortlist", 0) > 0):
            raise BundleMismatch(
                f"{folder}: effort {name} of a learned-graph needs beam and shortlist, found "
                f"{dict(params)}"
            )
    return LearnedGraphIndex(
        Graph(clusters, bias, edges, weights, labels, alpha, logit_bias), efforts
    )


def _settings(path: Path) -> tuple[float, float]:
    try:
        raw = read_object(path)
        alpha, logit_bias = float(raw["alpha"]), float(raw["logit_bias"])
    except (BundleError, ValueError, KeyError, TypeError) as exc:
        raise BundleMismatch(f"{path}: expected alpha and logit_bias: {exc}") from exc
    if not (math.isfinite(alpha) and math.isfinite(logit_bias)):
        raise BundleMismatch(f"{path}: alpha and logit_bias must be finite")
    return alpha, logit_bias


def _check_edges(
    edges_path: Path,
    weights_path: Path,
    edges: NDArray[np.int32],
    weights: Float32Rows,
    n_rows: int,
) -> None:
    """Raises BundleMismatch unless edges are label rows or empty, and weights in [0, 1].

    Empty edges must have weight 0.
    """
    if edges.min(initial=0) < 0 or edges.max(initial=0) > n_rows:
        raise BundleMismatch(
            f"{edges_path} names rows {edges.min()} to {edges.max()}, the index has {n_rows}"
        )
    if not ((weights >= 0) & (weights <= 1)).all():
        raise BundleMismatch(f"{weights_path} holds values outside [0, 1]")
    if weights[edges == n_rows].any():
        raise BundleMismatch(f"{weights_path} gives weight to edges that {edges_path} leaves empty")
