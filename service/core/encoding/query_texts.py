"""The texts of a batch of queries end to end, and the way from their embeddings to the queries'.

A query has one text, several (a `History`), or none where it brings a vector. All texts of a batch
are encoded alike. The embedding of a history is the weighted mean of its texts' embeddings, each a
unit row, scaled to length 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.encoding.field_tokenizer import AnyTokenizer
from service.core.types import Float32Rows, Query

LEAST_LENGTH: Final = 1e-12
"""A mean shorter than this is not scaled: the `eps` of torch's `normalize`, which encoders use."""


@dataclass(frozen=True, slots=True)
class QueryTexts:
    """`texts` of all queries, in their order; text i belongs to the query at `owners[i]`.

    `one_each` says that every query has exactly one text.
    """

    queries: Sequence[Query]
    texts: list[str]
    owners: list[int]
    one_each: bool

    @classmethod
    def of(cls, queries: Sequence[Query]) -> "QueryTexts":
        """Spread the texts of the queries."""
        if not any([query.vector is not None or query.history for query in queries]):
            return cls(queries, [query.text for query in queries], [*range(len(queries))], True)
        texts = [text for query in queries for text in query.texts]
        owners = [i for i, query in enumerate(queries) for _ in query.texts]
        return cls(queries, texts, owners, False)

    def embeddings(self, rows: Float32Rows) -> Float32Rows:
        """The queries' embeddings (n, dim) from those of the texts; a vector stands for itself."""
        if self.one_each:
            return rows
        pooled = np.zeros((len(self.queries), rows.shape[1]), np.float32)
        starts = np.searchsorted(self.owners, np.arange(len(self.queries) + 1)).tolist()
        for position, query in enumerate(self.queries):
            own = rows[starts[position] : starts[position + 1]]
            if query.vector is not None:
                pooled[position] = query.vector
            elif query.history is None:
                pooled[position] = own[0]
            else:
                pooled[position] = weighted_mean(own, query.history.weights)
        return pooled

    def n_tokens(self, lengths: Sequence[int]) -> list[int]:
        """The tokens of each query, from those of each text."""
        if self.one_each:
            return list(lengths)
        return [*map(int, np.bincount(self.owners, lengths, len(self.queries)))]

    def truncated(self, cut: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of each query, whether a text of its own was cut."""
        if self.one_each:
            return cut
        return np.asarray(np.bincount(self.owners, cut, len(self.queries)) > 0)

    def tokenless(self, tokenizer: AnyTokenizer, lengths: Sequence[int]) -> list[bool]:
        """Of each query, whether a text of its own left no token."""
        empty = map(tokenizer.leaves_no_token, self.texts, lengths)
        if self.one_each:
            return list(empty)
        owners = {owner for owner, is_empty in zip(self.owners, empty, strict=True) if is_empty}
        return [position in owners for position in range(len(self.queries))]


def weighted_mean(rows: Float32Rows, weights: Sequence[float] | None) -> Float32Rows:
    """The weighted mean (dim,) of unit rows (n, dim), scaled to length 1; None weighs all alike.

    Rows that cancel out leave zeros.

    >>> weighted_mean(np.float32([[1, 0], [0, 1]]), (3, 4))
    array([0.6, 0.8], dtype=float32)
    """
    shares = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    # Divided first, so that the squares below stay within the range of floats.
    mean = (shares / shares.max()) @ rows.astype(np.float64) / len(rows)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), LEAST_LENGTH), np.float32)
