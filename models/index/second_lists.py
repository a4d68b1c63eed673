"""A second inverted list for each label, where a query that misses the first one finds it.

A query is a label and something else. Where the something else leads it away from the list of a
label, it leads along what separates the label from the list's centre; a second centre on the same
side would be missed for the same reason. So the second list is one whose centre is near, but whose
difference from the label points elsewhere (after SOAR, arXiv 2404.00774).
"""

import faiss
import numpy as np
from numpy.typing import NDArray

_CANDIDATES = 16
_AT_ONCE = 4096


def second_lists(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each row (n, dim) another list than the nearest; (n, 1). Centres are of unit norm."""
    nearest = faiss.IndexFlatIP(rows.shape[1])
    nearest.add(centres)
    found = np.empty((len(rows), 1), np.int64)
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        part = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        cosines, near = nearest.search(part, min(_CANDIDATES, len(centres)))
        best = _cost(part, cosines, centres[near])[:, 1:].argmin(axis=1) + 1
        found[start : start + len(part), 0] = near[np.arange(len(part)), best]
    return found


def _cost(
    rows: NDArray[np.float32], cosines: NDArray[np.float32], centres: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(n, candidates): what is left of a row beside each of its centres (n, candidates, dim).

    It is squared, and what of it lies along what the first centre leaves counts twice.
    """
    left = rows - cosines[:, :1] * centres[:, 0]
    left /= np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)
    along = np.einsum("nd,nd->n", left, rows)[:, None]
    along = along - cosines * np.matmul(centres, left[:, :, None])[:, :, 0]
    return np.asarray(1 - cosines**2 + along**2)
