"""Evaluation sets, and exact ranking by inner product."""

from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.quality.groups import Groups
from models.quality.metrics import remove_filtered

Queries = TypeVar("Queries")
Others = TypeVar("Others")
_QUERIES_AT_ONCE = 512
"""Our choice: bounds the memory of one product with all label vectors."""


@dataclass(frozen=True, slots=True)
class EvaluationSet(Generic[Queries]):
    """Queries with their true labels, to score rankings on.

    `queries` are n texts or their embeddings (n, dim). `truth` is csr (n, n_labels). `filter_pairs`
    (m, 2) are pairs (row, label); predictions leave these labels out. `known_groups` (n,) are the
    queries' groups, None if each query is a group of its own.
    """

    queries: Queries
    truth: csr_array
    filter_pairs: NDArray[np.int64] | None = None
    known_groups: Groups | None = None

    def of(self, queries: Others) -> "EvaluationSet[Others]":
        """The same n queries in another form, such as their embeddings."""
        return EvaluationSet(queries, self.truth, self.filter_pairs, self.known_groups)

    @property
    def groups(self) -> Groups:
        """The group (n,) of each query."""
        if self.known_groups is None:
            return np.arange(self.truth.shape[0], dtype=np.int64)
        return self.known_groups

    @property
    def labelled_groups(self) -> Groups:
        """The groups of the queries that have a label, which alone are scored."""
        return self.groups[np.diff(self.truth.indptr) > 0]

    @property
    def spare(self) -> int:
        """The number of labels to rank beyond k, so that each query has k without filter pairs."""
        return spare(self.filter_pairs)

    def first(self, ranked: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """The first k labels (n, k) of each ranking (n, k + spare), without the filter pairs."""
        return without(ranked, self.filter_pairs, k)


EmbeddedSet: TypeAlias = EvaluationSet[NDArray[np.float32]]
"""An evaluation set whose queries are embeddings (n, dim)."""


def take(validation: EmbeddedSet, rows: NDArray[np.int64]) -> EmbeddedSet:
    """The queries `rows` (m,), in this order, with their labels, filter pairs and groups."""
    pairs = validation.filter_pairs
    if pairs is not None:
        place_of = np.full(len(validation.queries), -1)
        place_of[rows] = np.arange(len(rows))
        pairs = np.stack([place_of[pairs[:, 0]], pairs[:, 1]], axis=1)
        pairs = pairs[pairs[:, 0] >= 0]
    queries = np.ascontiguousarray(validation.queries[rows])
    return EvaluationSet(queries, validation.truth[rows], pairs, validation.groups[rows])


@torch.no_grad()
def top_products(
    embeddings: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The top k rows of `vectors` (m, dim) for each embedding (n, dim), and their products.

    Both are (n, k), or (n, m) if m is smaller.
    """
    queries, weight = torch.from_numpy(embeddings), torch.from_numpy(vectors)
    parts = [
        (queries[start : start + _QUERIES_AT_ONCE] @ weight.T).topk(min(k, len(weight)))
        for start in range(0, len(queries), _QUERIES_AT_ONCE)
    ]
    rows = torch.cat([part.indices for part in parts]).numpy()
    return rows, torch.cat([part.values for part in parts]).numpy()


def spare(filtered: NDArray[np.int64] | None) -> int:
    """The most filter pairs (m, 2) of one query: the number of labels to rank beyond k."""
    return int(np.bincount(filtered[:, 0]).max()) if filtered is not None and len(filtered) else 0


def without(
    ranked: NDArray[np.int64], filtered: NDArray[np.int64] | None, k: int
) -> NDArray[np.int64]:
    """The first k labels of each ranking (n, k or more), without the `filtered` pairs (m, 2)."""
    if filtered is not None and len(filtered):
        ranked = np.asarray(remove_filtered(ranked, filtered), np.int64)
    return ranked[:, :k]
