"""What every label index is: the one seam between search and everything around it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.core.types import Float32Rows, Hits


class LabelIndex(Protocol):
    """Finds the rows with the highest inner product. Blocking; called from many threads at once.

    The contract, the same for every kind: rows of one answer are unique; scores fall; k over the
    row count is cut to it; an empty batch gives an empty answer; a query that is not finite raises
    ValueError; an answer does not depend on which queries share its batch.
    """

    kind: str
    dim: int
    n_rows: int

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k rows of each query (n, dim) at a named effort. Raises ValueError, KeyError."""
        ...

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of `rows` alone, which rise, scored as an exhaustive search scores them."""
        ...


def check_queries(queries: Float32Rows, dim: int, k: int) -> None:
    """Refuse what no index can answer: a wrong width, k below one, NaN or infinite values."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries have shape {queries.shape}, the index holds vectors of {dim}")
    if k < 1:
        raise ValueError(f"k is {k}, it must be at least 1")
    if not np.isfinite(queries).all():
        raise ValueError("a query vector holds NaN or an infinite value")
