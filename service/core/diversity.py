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
"""Keeps a division by the length of zeros at 0."""


def diversify(
    scores: Float32Rows, tiers: Int64Rows, vectors: Float32Rows, diversity: float, k: int
) -> Int64Rows:
    """The places (n, min(k, m)) of the labels taken, in their order, among m candidates.

    `scores` and `tiers` are (n, m), the candidates' `vectors` (n, m, dim). No candidate is taken
    before all of lower tiers. Ties go to the candidate that stands first. No query looks at
    another one.
    """
    n, m = scores.shape
    places = np.empty((n, min(k, m)), np.int64)
    if places.size == 0:
        return places
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), _LEAST)
    marginal = (1 - diversity) * _rescaled(scores)
    relevance, likeness = marginal, np.full((n, m), -np.inf)
    queries, taken_tier = np.arange(n), np.iinfo(np.int64).max  # above all tiers
    tiers = tiers.copy()
    for rank in range(places.shape[1]):
        is_next = tiers == tiers.min(axis=1, keepdims=True)
        place = np.where(is_next, marginal, -np.inf).argmax(axis=1)
        places[:, rank] = place
        tiers[queries, place] = taken_tier
        cosines = (units @ units[queries, place][:, :, None])[:, :, 0]  # one product a query
        likeness = np.maximum(likeness, cosines)
        marginal = relevance - diversity * likeness
    return places


def _rescaled(scores: Float32Rows) -> NDArray[np.float64]:
    """Each row between 0 and 1; all 0 where its scores are equal."""
    high = scores.astype(np.float64)
    above = high - high.min(axis=1, keepdims=True)
    widest = above.max(axis=1, keepdims=True)
    return np.asarray(above / np.where(widest > 0, widest, 1.0))
