"""Retrieval augmentation: blends the label index's scores with the labels of similar queries.

A memory holds the embeddings of training queries and the labels of each. The answer blends two
probabilities of a label l for a query q:

    score(l) = (1 - weight) * sigmoid(<q, label_l> + logit_bias)
             + weight * sum over neighbours j of softmax_j(<q, query_j> / temperature) * value[j, l]

This is RAE-XMC's prediction rule (arXiv 2502.10615) with a weight between the two parts. As in
ViXML each part has its own search. A label that only the memory finds has no label part: it lies
beyond the label index's first `depth` labels, where that part is too small to matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import EXACT, MemoryInfo
from service.core.index.memory import Memory, open_memory
from service.core.index.memory_labels import MemoryLabels
from service.core.index.protocol import LabelIndex, check_queries
from service.core.types import Float32Rows, Hits


@dataclass(frozen=True, slots=True)
class Blend:
    """The parameters of the blend: `weight` is the memory's share, in (0, 1).

    `neighbours` is the number of training queries, `depth` the number of labels from the label
    index. `logit_bias` None means that the label index's scores are probabilities already.
    """

    weight: float
    temperature: float
    neighbours: int
    depth: int
    logit_bias: float | None


class AugmentedIndex:
    """A label index and a memory as one LabelIndex over the labels; its scores are in [0, 1]."""

    kind = "augmented"

    def __init__(
        self, labels: LabelIndex, memory: LabelIndex, memory_labels: MemoryLabels, settings: Blend
    ) -> None:
        self.dim = labels.dim
        self.n_rows = labels.n_rows
        self.labels = labels
        self.memory = Memory(memory, memory_labels, settings.neighbours, settings.temperature)
        self.settings = settings

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k labels by blended probability; `exact` is exact in both parts."""
        check_queries(queries, self.dim, k)
        k = min(k, self.n_rows)
        # At least k labels, so that the blend never has fewer.
        hits = self.labels.search(queries, max(k, self.settings.depth), effort)
        neighbours = self.memory.recall(queries, effort)
        return blend(hits, neighbours, self.memory.labels, self.settings, self.n_rows, k)

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of `rows` by blended probability, exact in both parts."""
        check_queries(queries, self.dim, k)
        if len(rows) == 0:
            return Hits(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), "f4"))
        hits = self.labels.search_among(queries, rows, len(rows))
        neighbours = self.memory.recall(queries, EXACT)
        k = min(k, len(rows))
        return blend(hits, neighbours, self.memory.labels, self.settings, self.n_rows, k, rows)


def blend(
    hits: Hits,
    neighbours: Hits,
    memory: MemoryLabels,
    settings: Blend,
    n_labels: int,
    k: int,
    among: NDArray[np.int64] | None = None,
) -> Hits:
    """Top k labels from the label index's `hits` (n, depth) and the memory's `neighbours` (n, m).

    The neighbours' scores are cosines; k is at most `depth`. Ties go by row. With `among` the
    memory counts for these label rows only.
    """
    n = len(hits.rows)
    if n == 0:
        return Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
    probabilities = hits.scores.astype(np.float64)  # (n, depth)
    if settings.logit_bias is not None:
        logits = probabilities + settings.logit_bias
        probabilities = np.exp(-np.logaddexp(0.0, -logits))  # no overflow
    label_parts = (1.0 - settings.weight) * probabilities
    shares = settings.weight * _softmax(neighbours.scores, settings.temperature)  # (n, m)
    starts = memory.offsets[neighbours.rows]
    lengths = memory.offsets[neighbours.rows + 1] - starts
    # Positions in the memory's flat arrays, by query and then by neighbour.
    flat_lengths = lengths.ravel()
    ends = np.cumsum(flat_lengths)
    places = np.repeat(starts.ravel() - ends + flat_lengths, flat_lengths) + np.arange(ends[-1])
    # One integer stands for a (query, label) pair, so one sort groups the pairs of all queries.
    bases = np.arange(n) * n_labels
    memory_keys = np.repeat(bases, lengths.sum(axis=1)) + memory.labels[places]
    memory_parts = np.repeat(shares.ravel(), flat_lengths) * memory.values[places]
    if among is not None:
        eligible = np.isin(memory.labels[places], among)
        memory_keys, memory_parts = memory_keys[eligible], memory_parts[eligible]
    keys = np.concatenate([(bases[:, None] + hits.rows).ravel(), memory_keys])
    parts = np.concatenate([label_parts.ravel(), memory_parts])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    fresh = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    firsts = np.concatenate([[0], fresh])
    return _best(keys[firsts], np.add.reduceat(parts[order], firsts), n, n_labels, k)


def _best(
    keys: NDArray[np.int64], scores: NDArray[np.float64], n: int, n_labels: int, k: int
) -> Hits:
    """Top k of each query; `keys` (query * n_labels + label) rise, and each query has k or more."""
    owners = keys // n_labels
    order = np.lexsort((-scores, owners))  # stable, so labels with one score stay in row order
    top = order[np.searchsorted(owners, np.arange(n))[:, None] + np.arange(k)]  # (n, k)
    return Hits(keys[top] % n_labels, scores[top].astype(np.float32))


def _softmax(cosines: Float32Rows, temperature: float) -> NDArray[np.float64]:
    """Shares of the neighbours (n, m), best first; each row sums to one."""
    cosines64 = cosines.astype(np.float64)
    weights = np.exp((cosines64 - cosines64[:, :1]) / temperature)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def open_augmented(
    folder: Path,
    info: MemoryInfo,
    labels: LabelIndex,
    efforts: Mapping[str, Mapping[str, int]],
) -> AugmentedIndex:
    """Open a bundle's memory and combine it with its label index; raises BundleMismatch."""
    memory = open_memory(folder, info, labels.dim, labels.n_rows, efforts)
    settings = Blend(info.weight, info.temperature, info.neighbours, info.depth, info.logit_bias)
    return AugmentedIndex(labels, memory.index, memory.labels, settings)
