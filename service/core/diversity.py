"""Maximal marginal relevance: labels that are relevant and unlike the labels before them.

Of the candidates left it takes again and again the one that is highest in

    (1 - diversity) * relevance - diversity * (highest cosine with a label taken before)

(Carbonell and Goldstein, SIGIR 1998). Relevance is the score, rescaled so that a query's candidates
lie between 0 and 1: scores of all kinds then weigh alike against cosines.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.types import Float32Rows, Int64Rows

DIVERSITY_DEPTH: Final = 100
"""Candidates of a diverse answer, or k if that is more. A choice: ten answers of ten labels."""
_LEAST: Final = 1e-12
"""Keeps a division by the length of zeros, or by the range of equal scores, at 0."""


def diversify(scores: Float32Rows, vectors: Float32Rows, diversity: float, k: int) -> Int64Rows:
    """The places (n, min(k, m)) of the labels taken, in their order, among m candidates.

    `scores` (n, m) say how relevant each is, with -inf for one that must come last; `vectors`
    (n, m, dim) are the candidates'. Ties go to the candidate that stands first. No query looks at
    another one.
    """
    n, m = scores.shape
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), _LEAST)
    relevances = (1 - diversity) * _rescaled(scores)
    likeness = np.full((n, m), -np.inf)  # the highest cosine with a label taken before
    queries = np.arange(n)
    taken = np.zeros((n, m), np.bool_)
    places = np.empty((n, min(k, m)), np.int64)
    for rank in range(places.shape[1]):
        marginal = relevances if rank == 0 else relevances - diversity * likeness
        place = np.where(taken, -np.inf, marginal).argmax(axis=1)
        # Where only candidates that must come last are left, the first of these is next.
        ended = taken[queries, place]
        place = np.where(ended, taken.argmin(axis=1), place)
        places[:, rank] = place
        taken[queries, place] = True
        cosines = (units @ units[queries, place][:, :, None])[:, :, 0]  # one product a query
        likeness = np.maximum(likeness, cosines)
    return places


def _rescaled(scores: Float32Rows) -> NDArray[np.float64]:
    """Each row between 0 and 1; what is -inf stays so."""
    finite = np.isfinite(scores)
    lowest = np.where(finite, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    highest = np.where(finite, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    spread = np.where(highest > lowest, highest - lowest, 1.0).astype(np.float64)
    return np.where(finite, (scores - np.where(np.isfinite(lowest), lowest, 0.0)) / spread, -np.inf)
