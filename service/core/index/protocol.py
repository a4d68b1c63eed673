"""LabelIndex: the interface between label search and the rest of the service."""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from service.core.types import Float32Rows, Hits

MAX_QUERY_LENGTH: Final = 1e6
"""The longest query vector that every kind of index answers with finite scores.

A choice: encoders give vectors of length 1, and label vectors that 16 bits can hold leave inner
products far within the range of 32 bits."""


class LabelIndex(Protocol):
    """Finds the rows with the highest scores. It blocks; many threads call it at once.

    The contract for every kind: rows of one answer are unique. Scores never rise. A k above the
    number of rows is cut to it. An empty batch gives an empty answer. A query with NaN or infinite
    values raises ValueError. An answer does not depend on the other queries of its batch.
    """

    kind: str
    dim: int
    n_rows: int

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k rows of each query (n, dim) at a named effort.

        Raises ValueError for queries or a k that `check_queries` refuses, KeyError for an unknown
        effort.
        """
        ...

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of `rows`, which rise, with the scores of an exhaustive search."""
        ...


def check_queries(queries: Float32Rows, dim: int, k: int) -> None:
    """Raises ValueError for a wrong width, a k below one, and NaN or infinite values."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries have shape {queries.shape}, the index holds vectors of {dim}")
    if k < 1:
        raise ValueError(f"k is {k}, it must be at least 1")
    if not np.isfinite(queries).all():
        raise ValueError("a query vector holds NaN or an infinite value")
